"""Check the interface that compressors share, for every kind and size of group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from inti_jax.config import GROUPS, SCALES, Compression
from inti_jax.models.compressors import Compressor, build_compressor
from inti_jax.models.rngs import make_rngs
from tests.cost.compiled import call, initialize

GRID = (3, 4)
KINDS = ("inti", "mean", "static", "drop")


def build(kind, group, size=24, grid=GRID, prefix_tokens=1, **changes) -> Compressor:
    settings = Compression(kind=kind, after=(1,), group=group, **{"width": 8} | changes)
    rngs = make_rngs(0)
    return build_compressor(settings, size, grid, prefix_tokens=prefix_tokens, dtype=jnp.float32, rngs=rngs)


def make(kind, group, **changes) -> Compressor:
    """A layer as after training: its weights are not equal."""
    layer = initialize(lambda: build(kind, group, **changes))
    for seed, param in enumerate((layer.out.kernel, layer.out.bias) if kind == "inti" else ()):
        param[...] = jax.random.normal(jax.random.key(seed), param.shape)
    if kind == "static":
        layer.logits[...] = jnp.linspace(-1, 1, group)
    return layer


def make_tokens(frames, tokens=13, width=24, seed=1):
    return jax.random.normal(jax.random.key(seed), (2, frames, tokens, width))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_output_frame_depends_on_its_own_group_alone(kind, group):
    layer = make(kind, group)
    assert isinstance(layer, Compressor) and layer.ratio == group
    x = make_tokens(3 * group)
    graphdef, params = nnx.split(layer)
    run = jax.jit(lambda x: nnx.merge(graphdef, params)(x))
    before = run(x)
    assert before.shape == (2, 3, 13, 24)
    for frame in range(3 * group):
        after = run(x.at[:, frame].multiply(2))
        changed = np.flatnonzero((before != after).any(axis=(0, 2, 3))).tolist()
        assert changed == ([frame // group] if kind != "drop" or frame % group == 0 else [])


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("kind", ["mean", "static", "drop"])
def test_a_baseline_blends_with_weights_that_are_the_same_everywhere(kind, group):
    logits = np.linspace(-1, 1, group)
    weights = {
        "mean": np.full(group, 1 / group),
        "static": np.exp(logits) / np.exp(logits).sum(),
        "drop": np.eye(group)[0],
    }[kind]
    x = make_tokens(2 * group)
    expected = np.einsum("k,btknd->btnd", weights, np.reshape(x, (2, 2, group, 13, 24)))
    np.testing.assert_allclose(call(make(kind, group), x), expected, atol=1e-6)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("changes", [{}, {"normalizer": "sigmoid"}, {"class_token": "patches"}], ids=str)
def test_inti_and_static_start_as_the_mean(group, changes):
    x = make_tokens(2 * group)
    expected = np.reshape(x, (2, 2, group, 13, 24)).mean(axis=2)
    for kind in ("inti", "static"):
        np.testing.assert_allclose(
            call(initialize(lambda k=kind: build(k, group, **changes)), x), expected, atol=1e-6
        )


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("kind", ["inti", "static"])
def test_gradients_reach_every_parameter(kind, group):
    graphdef, params = nnx.split(make(kind, group))
    x = make_tokens(2 * group)
    loss = lambda params: jnp.square(nnx.merge(graphdef, params)(x)).sum()  # noqa: E731
    for path, gradient in nnx.to_flat_state(jax.jit(jax.grad(loss))(params)):
        assert np.abs(gradient[...]).max() > 0, path


def counted(layer, frames, tokens, width):
    """XLA's count of the layer's MACs for one video, before compilation."""
    graphdef, params = nnx.split(layer)
    x = jax.ShapeDtypeStruct((1, frames, tokens, width), jnp.float32)
    lowered = jax.jit(lambda params, x: nnx.merge(graphdef, params)(x)).lower(params, x)
    return lowered.cost_analysis()["flops"] / 2


@pytest.mark.parametrize(("group", "prefix_tokens"), [(2, 1), (3, 0), (4, 5)])
def test_the_cost_of_inti_is_what_xla_counts(group, prefix_tokens):
    frames, tokens, width, narrow = 12, prefix_tokens + 49, 768, 192

    def both(scales):
        layer = nnx.eval_shape(
            lambda: build("inti", group, width, (7, 7), prefix_tokens, width=narrow, scales=scales)
        )
        return np.array([counted(layer, frames, tokens, width), layer.macs(frames)])

    theirs, ours = both(SCALES)
    assert ours < theirs < 1.05 * ours  # LayerNorm and GELU weigh little beside so wide a network
    for scale in SCALES:
        added, expected = both(SCALES) - both(tuple(other for other in SCALES if other != scale))
        # The sum with the other branches, and the mean over the frame, are additions that do not count.
        assert expected <= added < 1.15 * expected, scale


def test_a_kind_that_keeps_all_frames_is_refused():
    with pytest.raises(ValueError, match="no compressor is built for kind 'tome'"):
        build("tome", 2)


@pytest.mark.parametrize("normalizer", ["softmax", "sigmoid"])
@pytest.mark.parametrize("kind", ["inti", "static"])
@pytest.mark.parametrize(
    ("group", "start", "expected"),
    [
        (2, {"start": "mean"}, (0.5, 0.5)),
        (2, {"start": "first"}, (0.88, 0.12)),
        (4, {"start": "first", "first_weight": 0.7}, (0.7, 0.1, 0.1, 0.1)),
    ],
)
def test_learned_blends_start_as_they_are_told(kind, group, start, expected, normalizer):
    layer = initialize(lambda: build(kind, group, **start, normalizer=normalizer))
    x = jax.random.normal(jax.random.key(1), (2, group, 13, 24))
    blend = sum(weight * x[:, k] for k, weight in enumerate(expected))
    np.testing.assert_allclose(call(layer, x)[:, 0], blend, rtol=1e-5, atol=1e-6)
