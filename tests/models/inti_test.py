"""What makes an InTI layer one, whatever its weights are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from inti_jax.config import SCALES, Compression
from inti_jax.models.compressors import build_compressor
from inti_jax.models.inti import InTI
from tests.cost.compiled import call, initialize

GRID = (3, 4)
TOKENS = 13
WIDTH = 24


def make_layer(scales=SCALES, normalizer="softmax", seed=0) -> InTI:
    """A layer as after training: the last projection is not zero."""
    settings = Compression(kind="inti", after=(1,), scales=scales, normalizer=normalizer, width=8)
    layer = initialize(lambda: InTI(WIDTH, settings, GRID, rngs=nnx.Rngs(seed)))
    kernel = layer.out.kernel
    layer.out.kernel[...] = jax.random.normal(jax.random.key(seed), kernel.shape)
    return layer


def make_tokens(frames=6, seed=1):
    return jax.random.normal(jax.random.key(seed), (2, frames, TOKENS, WIDTH))


@pytest.mark.parametrize("normalizer", ["softmax", "sigmoid"])
def test_a_zero_last_projection_gives_the_mean_of_the_pair(normalizer):
    layer = make_layer(normalizer=normalizer)
    layer.out.kernel[...] = jnp.zeros_like(layer.out.kernel[...])
    x = make_tokens()
    np.testing.assert_allclose(layer(x), (x[:, 0::2] + x[:, 1::2]) / 2, atol=1e-6)


def test_it_starts_as_the_mean_of_the_pair():
    settings = Compression(kind="inti", after=(1,))
    x = make_tokens()
    built, mean = (
        build_compressor(
            settings if kind == "inti" else Compression(kind=kind, after=(1,)),
            WIDTH,
            GRID,
            dtype=jnp.float32,
            rngs=nnx.Rngs(0),
        )
        for kind in ("inti", "mean")
    )
    np.testing.assert_allclose(built(x), mean(x), atol=1e-6)


@pytest.mark.parametrize("kind", ["inti", "mean", "static", "drop"])
def test_an_output_frame_depends_on_its_own_pair_alone(kind):
    if kind == "inti":
        layer = make_layer()
    else:
        settings = Compression(kind=kind, after=(1,))
        layer = build_compressor(settings, WIDTH, GRID, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = make_tokens(frames=8)
    assert layer(x).shape == (2, 4, TOKENS, WIDTH)
    for i in range(4):
        gradient = jax.jit(jax.grad(lambda x, i=i: jnp.square(layer(x)[:, i]).sum()))(x)
        sources = np.flatnonzero(np.abs(gradient).sum(axis=(0, 2, 3)))
        assert sources.tolist() == ([2 * i] if kind == "drop" else [2 * i, 2 * i + 1])


@pytest.mark.parametrize(
    ("scales", "token", "seen"),
    [
        (("point",), 0, {0}),
        (("point",), 6, {6}),
        # Patch (1, 1) of the 3 x 4 grid is token 6; its 3 x 3 neighbours:
        (("local",), 6, {1, 2, 3, 5, 6, 7, 9, 10, 11}),
        # 3 x 3 positions three apart reach from corner to corner: patch (0, 0) sees (0, 0) and (0, 3).
        (("region",), 1, {1, 4}),
        (("global",), 0, set(range(1, TOKENS))),
        (("global",), 6, set(range(1, TOKENS))),
        # Off the grid, the class token has only point and global.
        (("local", "region"), 0, set()),
    ],
)
def test_weights_see_what_their_scale_covers(scales, token, seen):
    layer = make_layer(scales=scales)
    gradient = jax.jit(jax.grad(lambda x: layer.weights(x)[:, :, token, 0].sum()))(make_tokens())
    positions = np.flatnonzero(np.abs(gradient).sum(axis=(0, 1, 3)) > 1e-9)
    assert set(positions.tolist()) == seen


@pytest.mark.parametrize("normalizer", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weights_are_positive_and_sum_to_one(normalizer, dtype):
    layer = make_layer(normalizer=normalizer)
    weights = call(layer, 5 * make_tokens().astype(dtype), method="weights")
    assert weights.dtype == jnp.float32
    assert weights.min() > 0
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert weights.std() > 0.05  # and they differ, so this says something


@pytest.mark.parametrize("policy", ["mean", "patches"])
def test_the_class_token_follows_its_policy(policy):
    layer = make_layer()
    own = call(layer, make_tokens(), method="weights")
    layer.class_token = policy
    weights = call(layer, make_tokens(), method="weights")
    np.testing.assert_array_equal(weights[:, :, 1:], own[:, :, 1:])
    expected = np.full(2, 0.5) if policy == "mean" else own[:, :, 1:].mean(2)
    np.testing.assert_allclose(weights[:, :, 0], np.broadcast_to(expected, weights[:, :, 0].shape), atol=1e-6)
    assert np.abs(own[:, :, 0] - weights[:, :, 0]).max() > 0.05


def test_swapping_the_frames_of_a_pair_changes_the_blend():
    """The weights see which frame came first: what lets a model without any other clock tell the order."""
    layer = make_layer()
    x = make_tokens(frames=2)
    assert np.abs(call(layer, x) - call(layer, x[:, ::-1])).max() > 0.1


def test_gradients_reach_every_parameter():
    layer = make_layer()
    graphdef, params = nnx.split(layer)
    loss = lambda params: jnp.square(nnx.merge(graphdef, params)(make_tokens())).sum()  # noqa: E731
    gradients = jax.jit(jax.grad(loss))(params)
    for path, gradient in nnx.to_flat_state(gradients):
        assert np.abs(gradient[...]).max() > 0, path


def test_the_weights_match_a_computation_written_out_for_one_token():
    layer = make_layer(scales=("point", "local", "global"))
    x = make_tokens(frames=2)
    z = np.asarray(layer.down(layer.norm(x)))[0]  # [2, N, d]
    pairs = np.concatenate([z[0], z[1]], axis=-1)  # [N, 2d]
    grid = pairs[1:].reshape(*GRID, -1)
    kernel = np.asarray(layer.local.kernel[...])
    row, column = 1, 2
    local = sum(kernel[i, j] * grid[row + i - 1, column + j - 1] for i in range(3) for j in range(3))
    own = grid[row, column] @ np.asarray(layer.point.kernel[...]) + np.asarray(layer.point.bias[...])
    frame = pairs[1:].mean(0) @ np.asarray(layer.frame.kernel[...]) + np.asarray(layer.frame.bias[...])
    hidden = jax.nn.gelu(jnp.asarray(own + local + frame), approximate=False)
    expected = jax.nn.softmax(hidden @ layer.out.kernel[...] + layer.out.bias[...])
    token = 1 + row * GRID[1] + column
    np.testing.assert_allclose(layer.weights(x)[0, 0, token], expected, atol=1e-5)
