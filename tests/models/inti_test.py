"""What makes an InTI layer one, whatever its weights are."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from inti_jax.config import SCALES, Compression
from inti_jax.models.inti import InTI
from inti_jax.models.rngs import make_rngs
from tests.cost.compiled import call, initialize

GRID = (3, 4)
TOKENS = 13
WIDTH = 24


def make_layer(scales=SCALES, seed=0, prefix_tokens=1, **changes) -> InTI:
    """A layer as after training: the last projection is not zero."""
    settings = Compression(kind="inti", after=(1,), scales=scales, width=8, **changes)
    layer = initialize(lambda: InTI(WIDTH, settings, GRID, prefix_tokens=prefix_tokens, rngs=make_rngs(seed)))
    kernel = layer.out.kernel
    layer.out.kernel[...] = jax.random.normal(jax.random.key(seed), kernel.shape)
    return layer


def make_tokens(frames=6, tokens=TOKENS, seed=1):
    return jax.random.normal(jax.random.key(seed), (2, frames, tokens, WIDTH))


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
@pytest.mark.parametrize(
    ("group", "dtype"), [(2, jnp.float32), (2, jnp.bfloat16), (3, jnp.bfloat16), (4, jnp.float32)]
)
def test_weights_are_positive_and_sum_to_one(normalizer, group, dtype):
    layer = make_layer(normalizer=normalizer, group=group)
    weights = call(layer, 5 * make_tokens(12).astype(dtype), method="weights")
    assert weights.dtype == jnp.float32 and weights.shape == (2, 12 // group, TOKENS, group)
    assert weights.min() > 0
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert weights.std() > 0.05  # and they differ, so this says something


@pytest.mark.parametrize("policy", ["mean", "patches"])
@pytest.mark.parametrize(("group", "prefix_tokens"), [(2, 1), (3, 3)])
def test_the_tokens_before_the_patches_follow_their_policy(policy, group, prefix_tokens):
    layer = make_layer(group=group, prefix_tokens=prefix_tokens)
    x = make_tokens(tokens=prefix_tokens + 12)
    own = call(layer, x, method="weights")
    layer.class_token = policy
    weights = call(layer, x, method="weights")
    prefix, patches = slice(prefix_tokens), slice(prefix_tokens, None)
    np.testing.assert_array_equal(weights[:, :, patches], own[:, :, patches])
    expected = own[:, :, patches].mean(2, keepdims=True) if policy == "patches" else 1 / group
    np.testing.assert_allclose(
        weights[:, :, prefix], np.broadcast_to(expected, own[:, :, prefix].shape), atol=1e-6
    )
    for token in range(prefix_tokens):  # each of them has weights of its own otherwise
        assert np.abs(own[:, :, token] - weights[:, :, token]).max() > 0.05
        assert np.abs(own[:, :, token] - own[:, :, token - 1]).max() > 0.05


@pytest.mark.parametrize("policy", ["own", "mean", "patches"])
def test_without_tokens_before_the_patches_the_policy_does_nothing(policy):
    layer = make_layer(prefix_tokens=0)
    x = make_tokens(tokens=12)
    own = call(layer, x, method="weights")
    layer.class_token = policy
    np.testing.assert_array_equal(call(layer, x, method="weights"), own)


def test_swapping_the_frames_of_a_pair_changes_the_blend():
    """The weights see which frame came first: what lets a model without any other clock tell the order."""
    layer = make_layer()
    x = make_tokens(frames=2)
    assert np.abs(call(layer, x) - call(layer, x[:, ::-1])).max() > 0.1


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def reference(layer, x):
    """The layer written out in NumPy, token by token, for the frames `x` `[T, N, D]` of one video."""
    parameters = {
        ".".join(map(str, path)): np.asarray(leaf[...], np.float64)
        for path, leaf in nnx.to_flat_state(nnx.state(layer, nnx.Param))
    }

    def linear(name, x):
        return x @ parameters[f"{name}.kernel"] + parameters[f"{name}.bias"]

    def around(name, grid, row, column, step):
        return sum(
            parameters[f"{name}.kernel"][i, j] * grid[row + step * (i - 1), column + step * (j - 1)]
            for i in range(3)
            for j in range(3)
            if 0 <= row + step * (i - 1) < GRID[0] and 0 <= column + step * (j - 1) < GRID[1]
        )

    first = layer.prefix_tokens
    blended = []
    for group in np.split(np.asarray(x, np.float64), len(x) // layer.ratio):
        deviation = group - group.mean(-1, keepdims=True)
        normal = deviation / np.sqrt((deviation**2).mean(-1, keepdims=True) + 1e-5)
        normal = normal * parameters["norm.scale"] + parameters["norm.bias"]
        narrow = np.concatenate(list(normal @ parameters["down.kernel"]), axis=-1)
        grid = narrow[first:].reshape(*GRID, -1)
        weights = []
        for token, own in enumerate(narrow):
            context = linear("point", own) + linear("frame", narrow[first:].mean(0))
            if token >= first:
                row, column = divmod(token - first, GRID[1])
                context += around("local", grid, row, column, 1) + around("region", grid, row, column, 3)
            logits = linear("out", gelu(context))
            gates = np.exp(logits) if layer.normalizer == "softmax" else 1 / (1 + np.exp(-logits))
            weights.append(gates / gates.sum())
        weights = np.array(weights)
        if layer.class_token != "own":
            even = np.full(layer.ratio, 1 / layer.ratio)
            weights[:first] = even if layer.class_token == "mean" else weights[first:].mean(0)
        blended.append(np.einsum("nk,knd->nd", weights, group))
    return np.array(blended)


@pytest.mark.parametrize(
    ("group", "normalizer", "class_token", "prefix_tokens"),
    [
        (2, "softmax", "own", 1),
        (2, "sigmoid", "patches", 1),
        (3, "softmax", "patches", 4),
        (3, "sigmoid", "own", 3),
        (4, "softmax", "mean", 2),
        (4, "sigmoid", "patches", 0),
    ],
)
def test_the_blend_is_that_of_a_computation_written_out(group, normalizer, class_token, prefix_tokens):
    layer = make_layer(
        normalizer=normalizer, group=group, class_token=class_token, prefix_tokens=prefix_tokens
    )
    for seed, name in enumerate(("point", "frame", "out")):
        bias = getattr(layer, name).bias
        bias[...] = jax.random.normal(jax.random.key(seed), bias.shape)
    x = make_tokens(2 * group, tokens=prefix_tokens + 12)
    found = call(layer, x)
    for video, expected in zip(found, (reference(layer, one) for one in x), strict=True):
        np.testing.assert_allclose(video, expected, atol=2e-5)
    # The blend is not near the mean, so equality says something.
    mean = np.reshape(x, (2, 2, group, -1, WIDTH)).mean(axis=2)
    assert np.abs(found - mean)[:, :, prefix_tokens:].max() > 0.5


@pytest.mark.parametrize("group", [2, 3])
def test_the_gradients_are_those_of_the_blend(group):
    layer = make_layer(group=group)
    graphdef, params = nnx.split(layer)
    x = make_tokens(2 * group)
    direction = jax.random.normal(jax.random.key(1), call(layer, x).shape)

    def written_out(params, x):
        weights = nnx.merge(graphdef, params).weights(x)
        groups = x.reshape(len(x), -1, group, *x.shape[2:])
        return (jnp.einsum("bsng,bsgnd->bsnd", weights, groups) * direction).sum()

    def blended(params, x):
        return (nnx.merge(graphdef, params)(x) * direction).sum()

    found, expected = (jax.jit(jax.grad(f, argnums=(0, 1)))(params, x) for f in (blended, written_out))
    jax.tree.map(lambda *pair: np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-4), found, expected)
