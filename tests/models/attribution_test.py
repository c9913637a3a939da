"""Shares and rollout, against one-hot frames pushed through the layers and a rollout written out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from inti_jax.config import Compression, Model
from inti_jax.config.backbones import BACKBONES
from inti_jax.models import attribution
from inti_jax.models.adapters import NOTHING
from inti_jax.models.block import Attention
from inti_jax.models.inti import InTI
from inti_jax.models.rngs import make_rngs
from inti_jax.models.trace import Blend, Trace
from inti_jax.models.video import VideoModel
from inti_jax.models.vit import ImageTower
from tests.configs import FAMILIES
from tests.cost.compiled import call, initialize
from tests.models.compressors_test import build


@pytest.mark.parametrize(("group", "halvings", "prefix_tokens"), [(2, 1, 0), (2, 2, 1), (3, 1, 1), (3, 2, 5)])
@pytest.mark.parametrize("kind", ["inti", "mean", "static", "drop"])
def test_shares_are_those_of_one_hot_frames_pushed_through_the_layers(
    kind, group, halvings, prefix_tokens, monkeypatch
):
    ratio, tokens = group**halvings, prefix_tokens + 12
    frames, rng = 2 * ratio, np.random.default_rng(0)
    # Channel t of frame t is 1. What blends the tokens blends these.
    pushed = jnp.broadcast_to(jnp.eye(frames)[None, :, None], (1, frames, tokens, frames))
    steps = []
    for _ in range(halvings):
        layer = nnx.eval_shape(lambda: build(kind, group, prefix_tokens=prefix_tokens))
        if kind == "static":
            layer.logits = nnx.Param(jnp.asarray(rng.standard_normal(group), jnp.float32))
        if kind == "inti":  # its own weights are compared with a reference in inti_test.py
            weights = rng.dirichlet(np.ones(group), (1, pushed.shape[1] // group, tokens))
            weights = jnp.asarray(weights, jnp.float32)
            monkeypatch.setattr(InTI, "_weights", lambda *_, weights=weights: weights)
        steps.append(Blend(layer.weights(pushed)))
        pushed = layer(pushed)
    found = attribution.shares(Trace(tuple(steps), jnp.ones((2, tokens))))
    for frame in range(frames):
        np.testing.assert_allclose(found[frame], pushed[0, frame // ratio, :, frame], atol=1e-6)
        assert np.abs(pushed[0, 1 - frame // ratio, :, frame]).max() == 0
    np.testing.assert_allclose(found.reshape(2, ratio, tokens).sum(axis=1), 1, atol=1e-6)
    if kind == "mean":
        assert np.ptp(found) == 0 and found[0, 0] == pytest.approx(1 / ratio)
    if kind == "drop":
        np.testing.assert_array_equal(found, np.tile(np.arange(frames) % ratio == 0, (tokens, 1)).T)
    if kind == "inti":
        assert found.std() > 0.05  # nothing is uniform, so equality says something


CASES = {
    "none": {},
    "inti": {"compression": Compression(kind="inti", after=(1,))},
    "twice": {"compression": Compression(kind="inti", after=(1, 2))},
    "a loop": {"compression": Compression(kind="inti", after=(2,)), "scan": "on"},
    "groups of 3": {"compression": Compression(kind="inti", after=(1,), group=3)},
    "tome": {"compression": Compression(kind="tome", r=(3, 4))},
    "attention over time": {
        "adaptation": "aim",
        "compression": Compression(kind="static", after=(1,), group=3),
    },
    "shifts": {"adaptation": "zero_i2v", "compression": Compression(kind="inti", after=(2,))},
    "siglip": {"family": "siglip", "compression": Compression(kind="tome", r=3)},
    "patches": {"family": "patches", "compression": Compression(kind="inti", after=(1,))},
    "registers": {"family": "dinov2", "adaptation": "aim", "compression": Compression(kind="tome", r=2)},
}
FRAMES = 12


def traced(monkeypatch, family="clip", **changes):
    """A model with random parameters, the logits of a video, and the trace."""
    size = dataclasses.replace(BACKBONES["tiny"], layers=2, width=24, **FAMILIES[family])
    monkeypatch.setitem(BACKBONES, "tiny", size)
    settings = Model(pretrained="random", **changes)
    model = nnx.eval_shape(lambda: VideoModel(settings, 10, rngs=make_rngs(0)))
    rng = np.random.default_rng(0)
    graphdef, shapes = nnx.split(model)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32), shapes)
    model = nnx.merge(graphdef, params)
    video = rng.integers(0, 256, (1, FRAMES, 32, 32, 3), np.uint8)
    return model, video, *call(model, video, method="trace")


def written_out(trace, shifts):
    """The rollout as a product of dense matrices, from the first block to the head."""
    matrix = None
    for step in trace.steps:
        if isinstance(step, Blend):
            _, groups, tokens, group = step.weights.shape
            mixed = np.zeros((groups, tokens, groups * group, tokens))
            for s in range(groups):
                for n in range(tokens):
                    for k in range(group):
                        mixed[s, n, s * group + k, n] = step.weights[0, s, n, k]
            parts = [mixed]
        else:
            frames, groups, tokens, _ = step.attention.shape
            identity = np.eye(frames * tokens).reshape(frames, tokens, frames, tokens)
            parts = []
            if step.over_time is not None:
                over_time = np.zeros_like(identity)
                for n in range(tokens):
                    over_time[:, n, :, n] = step.over_time[n]
                parts.append((identity + over_time) / 2)
            within = np.zeros_like(identity)
            for t in range(frames):
                for g, offset in enumerate([*(offset for offset, _ in shifts), 0]):
                    other = t + offset if 0 <= t + offset < frames else t
                    within[t, :, other] += step.attention[t, g]
            parts.append((identity + within) / 2)
            if step.merging is not None:
                places, portions = (np.asarray(part) for part in step.merging)
                merged = np.zeros((frames, places.max() + 1, frames, tokens))
                for t in range(frames):
                    merged[t, places[t], t, np.arange(tokens)] = portions[t]
                parts.append(merged)
        for part in parts:
            flat = part.reshape(part.shape[0] * part.shape[1], -1)
            matrix = flat if matrix is None else flat @ matrix
    pooled = np.asarray(trace.pooling) / len(trace.pooling)
    return (pooled.reshape(-1) @ matrix).reshape(FRAMES, -1)


@pytest.mark.parametrize("case", CASES)
def test_rollout_is_that_of_a_product_written_out(case, monkeypatch):
    model, _, _, trace = traced(monkeypatch, **CASES[case])
    trace = jax.device_get(trace)
    found = attribution.rollout(trace)
    assert found.shape == (FRAMES, model.tower.tokens) and found.min() >= 0
    assert found.sum() == pytest.approx(1)
    np.testing.assert_allclose(found, written_out(trace, model.adapters[0].shifts), atol=1e-7)
    assert found[:, model.tower.prefix_tokens :].std() > 1e-5


def test_a_traced_pass_gives_the_logits(monkeypatch):
    """Also where the model itself runs its blocks in one loop."""
    model, video, logits, _ = traced(monkeypatch, **CASES["a loop"])
    assert model.scans
    np.testing.assert_allclose(logits, call(model, video), atol=1e-5)


def test_merged_patches_share_the_token_that_they_become(monkeypatch):
    model, _, _, trace = traced(monkeypatch, **CASES["tome"])
    trace = jax.device_get(trace)
    places, shares = attribution.places(trace), attribution.shares(trace)
    tokens = model.tower.tokens
    assert places.shape == shares.shape == (FRAMES, tokens)
    for into, share in zip(places, shares, strict=True):
        sizes = np.bincount(into)
        assert len(sizes) == tokens - 7 and sizes.min() == 1
        assert into[0] == 0 and sizes[0] == 1  # the class token stays by itself
        np.testing.assert_allclose(share, 1 / sizes[into], atol=1e-6)


def test_without_compression_every_token_is_its_own(monkeypatch):
    _, _, _, trace = traced(monkeypatch)
    np.testing.assert_array_equal(attribution.shares(jax.device_get(trace)), 1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sized", [False, True])
def test_attention_mixes_by_its_probabilities(causal, sized):
    attention = initialize(lambda: Attention(24, 3, causal=causal, dtype=jnp.float32, rngs=make_rngs(0)))
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, 7, 3, 8), np.float32)) for _ in range(3))
    sizes = jnp.asarray(rng.integers(1, 5, (2, 7)), jnp.float32) if sized else None
    found = call(attention, q, k, sizes, method="probabilities")
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-6)
    expected = call(attention.out, jnp.einsum("bamn,bnah->bmah", found, v))
    mixed = jax.jit(lambda q, k, v, sizes: attention.mix(q, k, v, NOTHING, sizes))(q, k, v, sizes)
    np.testing.assert_allclose(mixed, expected, atol=1e-5)


def test_the_pooling_reduces_by_its_weights():
    for family in ("clip", "patches"):
        size = dataclasses.replace(BACKBONES["tiny"], layers=1, **FAMILIES[family])
        tower = initialize(lambda size=size: ImageTower(size, rngs=make_rngs(0)))
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.standard_normal((2, 5, 96), np.float32))
        sizes = jnp.asarray(rng.integers(1, 4, (2, 5)), jnp.float32)
        weights = call(tower, x, sizes, method="pooling_weights")
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
        expected = jnp.einsum("bn,bnd->bd", weights, x)
        np.testing.assert_allclose(call(tower, x, sizes, method="reduce"), expected, atol=1e-5)


def test_how_many_tokens_have_a_weight_far_from_equal():
    weights = np.array([[0.5, 0.5], [0.61, 0.39], [0.59, 0.41], [0, 1]])
    assert attribution.far_from_equal(weights) == 0.5
    assert attribution.far_from_equal(np.array([[0.3, 0.3, 0.4], [0.2, 0.4, 0.4]])) == 0.5
