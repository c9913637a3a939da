"""Our video models against the references: features, and gradients of what trains, with nothing at zero."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from inti_jax.config import Aim, Compression, Lora, Model, StAdapter, ZeroI2V
from inti_jax.config.backbones import BACKBONES, CLIP_MEAN, CLIP_STD, BackboneSize
from inti_jax.models import tome
from inti_jax.models.freezing import trains
from inti_jax.models.parameters import merge, parameter_shapes
from inti_jax.models.rngs import make_rngs
from inti_jax.models.video import VideoModel
from tests.configs import PREFIXES
from tests.models import torch_references as references

BATCH, FRAMES = 2, 4
HEIGHT, WIDTH = 16, 64  # 2 x 8 patches: what mistakes rows for columns is found
SHIFTS = {
    "base": ((-1, 1), (1, 1)),
    "ablation": ((-1, 1), (1, 1), (-2, 1), (2, 1)),
    "long": ((-1, 2), (1, 2), (-2, 1), (2, 1), (-3, 1)),
}
LORA_TARGETS = ("query", "key", "value", "out", "fc", "proj")


@dataclasses.dataclass(frozen=True)
class Method:
    settings: dict[str, Any]  # of the model
    reference: Callable[..., torch.Tensor]
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the reference
    heads: int = 4
    unused: tuple[str, ...] = ()  # adapters that the reference has and the model does not


METHODS = {
    "clip": Method({"adaptation": "full"}, references.clip),
    **{
        f"aim_{count}": Method(
            {"adaptation": "aim", "aim": Aim(scale=0.7, temporal_adapters=count)},
            references.aim,
            {"scale": 0.7, "temporal_adapters": count},
        )
        for count in (1, 2)
    },
    **{
        f"st_adapter_{'_'.join(before)}": Method(
            {"adaptation": "st_adapter", "st_adapter": StAdapter(width=24, before=before)},
            references.st_adapter,
            {"before": before},
        )
        for before in (("mlp",), ("attn", "mlp"))
    },
    **{
        f"zero_i2v_{name}": Method(
            {"adaptation": "zero_i2v", "zero_i2v": ZeroI2V(scale=0.7, shifts=shifts)},
            references.zero_i2v,
            {"scale": 0.7, "shifts": shifts},
            heads=16,
        )
        for name, shifts in SHIFTS.items()
    },
    "lora": Method(
        {"adaptation": "lora", "lora": Lora(rank=4, alpha=6.0, targets=LORA_TARGETS)},
        references.lora,
        {"alpha": 6.0},
    ),
    # The temporal part of a method by itself.
    "attention": Method(
        {"temporal": "attention"},
        references.aim,
        {"scale": 0.5, "temporal_adapters": 1},
        unused=("attn_out", "mlp_beside"),
    ),
    "conv": Method(
        {"temporal": "conv", "st_adapter": StAdapter(width=24)},
        references.st_adapter,
        {"before": ("mlp",), "pool": references.mean_of_normalized},
    ),
    "shift": Method(
        {"temporal": "shift"},
        references.zero_i2v,
        {"scale": 0.5, "shifts": SHIFTS["base"]},
        unused=("attn_in", "attn_out", "mlp_in", "mlp_out"),
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_features_and_gradients(method, monkeypatch):
    """Of a first block, one between others and a last; of one alone, with other tokens before the patches."""
    compare(METHODS[method], 3, monkeypatch)


@pytest.mark.parametrize(
    ("r", "after", "by_block", "matching"),
    [
        (3, (), (3, 3, 3), "frame"),
        (3, (), (3, 3, 3), "clip"),
        ((5, 0, 2), (), (5, 0, 2), "frame"),
        (20, (), (8, 4, 2), "frame"),
        (4, (2,), (0, 4, 0), "clip"),
    ],
)
def test_features_and_gradients_with_merged_tokens(r, after, by_block, matching, monkeypatch):
    """At most half of the patches merge in a block: of 16 patches 8, of 8 then 4, of 4 then 2."""
    settings = {"compression": Compression(kind="tome", r=r, after=after, matching=matching)}
    arguments = {"r": by_block, "alike": matching == "clip"}
    compare(Method(settings, references.tome, arguments), 3, monkeypatch)


TOME = Method(
    {"compression": Compression(kind="tome", r=3, matching="frame")}, references.tome, {"r": (3, 3)}
)


@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize("method", ["aim_2", "st_adapter_attn_mlp", "zero_i2v_base", "lora", "tome"])
def test_features_and_gradients_with_other_tokens_before_the_patches(method, prefix, monkeypatch):
    blocks = 2 if method == "tome" else 1
    compare({**METHODS, "tome": TOME}[method], blocks, monkeypatch, **PREFIXES[prefix])


@pytest.mark.parametrize(("tokens", "prefix"), [(17, 1), (10, 1), (3, 1), (16, 0), (9, 0), (21, 5)])
@pytest.mark.parametrize("frames", [1, 3])
def test_the_tokens_that_merge(tokens, prefix, frames):
    """`frames` frames merge alike; ours counts patches within the first set and the second."""
    keys = np.random.default_rng(0).standard_normal((6, tokens, 4, 8), np.float32)
    patches = jnp.asarray(keys[:, prefix:])
    for r in range(1, (tokens - prefix) // 2 + 1):
        sources, destinations, stay = (np.asarray(part) for part in tome.match(patches, r, frames))
        for i in range(len(keys)):
            clip = torch.from_numpy(keys).unflatten(0, (-1, frames))[i // frames]
            kept, merged, into = references.match_tokens(clip.mean(dim=-2), r, prefix)
            np.testing.assert_array_equal(prefix + 1 + 2 * stay[i], kept)
            np.testing.assert_array_equal(prefix + 1 + 2 * sources[i], merged)
            np.testing.assert_array_equal(prefix + 2 * destinations[i], into)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_merged_tokens_are_means_by_size(prefix):
    rng = np.random.default_rng(0)
    tokens = prefix + 10
    x = rng.standard_normal((4, tokens, 3), np.float32)
    keys = rng.standard_normal((4, tokens, 2, 8), np.float32)
    keys[:, prefix:] = keys[:, :1]  # nothing is as similar as the first token to any other
    keys[:, prefix:] += 0.1 * rng.standard_normal((4, 10, 2, 8), np.float32)
    sizes = rng.integers(1, 5, (4, tokens)).astype(np.float32)
    matches = tome.match(jnp.asarray(keys[:, prefix:]), 4, 1)
    found, found_sizes = tome.merge(jnp.asarray(x), jnp.asarray(sizes), matches, prefix=prefix)
    videos = [torch.from_numpy(part)[None] for part in (x, sizes, keys.mean(axis=-2))]
    expected, expected_sizes = references.merge_tokens(*videos, 4, prefix)
    np.testing.assert_allclose(found, expected[0], atol=1e-6)
    np.testing.assert_array_equal(found_sizes, expected_sizes[0])
    np.testing.assert_array_equal(found_sizes.sum(axis=1), sizes.sum(axis=1))
    # The tokens before the patches stay as they were, in front.
    np.testing.assert_allclose(found[:, :prefix], x[:, :prefix], atol=1e-6)
    np.testing.assert_array_equal(found_sizes[:, :prefix], sizes[:, :prefix])


def compare(method: Method, blocks: int, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """With the reference in float64: what differs is then our own rounding, or a mistake."""
    size = BackboneSize(
        width=64, layers=blocks, heads=method.heads, patch=8, resolution=(HEIGHT, WIDTH), **changes
    )
    monkeypatch.setitem(BACKBONES, "tiny", size)
    settings = Model(pretrained="random", **method.settings)
    model = nnx.eval_shape(lambda: VideoModel(settings, 10, num_frames=FRAMES, rngs=make_rngs(0)))
    graphdef = nnx.graphdef(model)
    params = random_parameters({path: leaf.shape for path, leaf in parameter_shapes(model).items()})
    names = [path for path in params if trains(settings, path, blocks) and not path.startswith("head.")]
    rng = np.random.default_rng(1)
    video = rng.integers(0, 256, (BATCH, FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    weights = rng.standard_normal((BATCH, size.width))

    def weighted(trained, frozen, video):
        features = merge(graphdef, frozen | trained).features(video)
        return (features * jnp.asarray(weights, jnp.float32)).sum(), features

    ours = jax.jit(jax.value_and_grad(weighted, has_aux=True))
    (_, features), gradients = ours({name: params[name] for name in names}, params, video)

    tensors = {path: torch.from_numpy(value.astype(np.float64)) for path, value in params.items()}
    for name in names:
        tensors[name].requires_grad_()
    for slot in method.unused:
        for i in range(blocks):
            tensors |= references.idle_adapter(f"adapters.{i}.{slot}", size.width)
    mean, std = np.asarray(CLIP_MEAN), np.asarray(CLIP_STD)
    frames = torch.from_numpy((video / 255 - mean) / std)
    expected = method.reference(tensors, frames, **method.arguments)
    (expected * torch.from_numpy(weights)).sum().backward()

    expected = expected.detach().numpy()
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    for name in names:
        slope = tensors[name].grad
        slope = np.zeros(tensors[name].shape) if slope is None else slope.numpy()
        assert np.linalg.norm(gradients[name] - slope) <= 1e-5 * np.linalg.norm(slope), name


def random_parameters(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """None of them zero, as many are at their start, where they hide mistakes."""
    rng = np.random.default_rng(0)
    params = {}
    for path, shape in shapes.items():
        inputs = 1
        if path.endswith("kernel"):
            inputs = np.prod(shape[:-1]) if "out" in path or "patch" in path else shape[0]
        params[path] = rng.standard_normal(shape, np.float32) * np.float32(0.5 / np.sqrt(inputs))
        if path.endswith("scale"):
            params[path] += 1
    return params
