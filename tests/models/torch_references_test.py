"""What the references have to agree on with each other, and with what is simple enough to do by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from inti_jax.config.backbones import BackboneSize
from inti_jax.models.parameters import flatten
from inti_jax.models.rngs import make_rngs
from inti_jax.models.vit import ImageTower
from tests.cost.compiled import call
from tests.models import torch_references as references

WIDTH, HEADS, BLOCKS, FRAMES = 64, 4, 2, 4
SIZE = BackboneSize(width=WIDTH, layers=BLOCKS, heads=HEADS, patch=8, resolution=32)
ADDED = {  # to each block
    "aim": ("temporal_in", "temporal_out", "attn_out", "mlp_beside"),
    "st_adapter": ("before_attn", "before_mlp"),
    "zero_i2v": ("attn_in", "attn_out", "mlp_in", "mlp_out"),
}
CALLS = {
    "aim": lambda params, frames: references.aim(params, frames, scale=0.5, temporal_adapters=2),
    "st_adapter": lambda params, frames: references.st_adapter(params, frames, before=("attn", "mlp")),
    "zero_i2v": lambda params, frames: references.zero_i2v(params, frames, scale=0.5, shifts=()),
}


@pytest.fixture(scope="module")
def tower() -> ImageTower:
    built = ImageTower(SIZE, rngs=make_rngs(0))
    rng = np.random.default_rng(0)
    for _, parameter in nnx.to_flat_state(nnx.state(built, nnx.Param)):
        parameter[...] = parameter[...] + 0.1 * rng.standard_normal(parameter.shape, np.float32)
    return built


@pytest.fixture(scope="module")
def params(tower) -> references.Params:
    """Of the tower alone, in float64, so that what should be equal is equal but for rounding."""
    return {
        f"tower.{path}": torch.from_numpy(np.array(value, np.float64))
        for path, value in flatten(nnx.state(tower, nnx.Param)).items()
    }


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((2, FRAMES, 32, 32, 3)))


def adapters(method: str, inner: int = 16) -> references.Params:
    """Random, but for what makes them change nothing: `up` is zero."""
    generator = torch.Generator().manual_seed(0)
    added = {}
    for i in range(BLOCKS):
        for slot in ADDED[method]:
            path = f"adapters.{i}.{slot}"
            shapes = {"down.kernel": (WIDTH, inner), "down.bias": (inner,)}
            if method == "st_adapter":
                shapes |= {"conv.kernel": (3, inner), "conv.bias": (inner,)}
            for name, shape in shapes.items():
                added[f"{path}.{name}"] = torch.randn(shape, generator=generator, dtype=torch.float64)
            added[f"{path}.up.kernel"] = torch.zeros(inner, WIDTH, dtype=torch.float64)
            added[f"{path}.up.bias"] = torch.zeros(WIDTH, dtype=torch.float64)
    return added


def largest_difference(x: torch.Tensor, y: torch.Tensor) -> float:
    return ((x - y).abs().max() / y.abs().max()).item()


def test_clip_is_the_image_tower_and_the_mean_over_frames(tower, params, frames):
    images = jnp.asarray(frames.flatten(0, 1).numpy(), jnp.float32)
    ours = torch.from_numpy(np.array(call(tower, images))).unflatten(0, (2, FRAMES)).mean(dim=1)
    assert largest_difference(ours, references.clip(params, frames)) < 1e-5


@pytest.mark.parametrize("method", ["aim", "zero_i2v"])
def test_adapters_that_end_in_zero_leave_clip(method, params, frames):
    found = CALLS[method](params | adapters(method), frames)
    assert largest_difference(found, references.clip(params, frames)) < 1e-12


@pytest.mark.parametrize(("method", "slot"), [(method, slot) for method in ADDED for slot in ADDED[method]])
def test_each_adapter_counts(method, slot, params, frames):
    added = adapters(method)
    for path, value in added.items():
        if "up" in path:
            value.copy_(torch.linspace(-0.1, 0.1, value.numel()).reshape(value.shape))
    frames = frames[:1, :2]
    before = CALLS[method](params | added, frames)
    # Of the first block: of the last, what changes patches alone is lost.
    added[f"adapters.0.{slot}.up.kernel"] *= -1
    assert largest_difference(CALLS[method](params | added, frames), before) > 1e-3


def test_st_adapter_differs_from_clip_in_the_order_of_mean_and_norm(params, frames):
    """With one frame there is no order."""
    found = CALLS["st_adapter"](params | adapters("st_adapter"), frames[:, :1])
    assert largest_difference(found, references.clip(params, frames[:, :1])) < 1e-12
    found = CALLS["st_adapter"](params | adapters("st_adapter"), frames)
    assert largest_difference(found, references.clip(params, frames)) > 1e-6


def test_lora_that_ends_in_zero_leaves_clip(params, frames):
    added = {}
    for target, (before, after) in {"query": (1, 1), "key": (1, 1), "fc": (1, 4), "proj": (4, 1)}.items():
        for i in range(BLOCKS):
            path = f"adapters.{i}.lora_{target}"
            added[f"{path}.down.kernel"] = torch.ones(before * WIDTH, 4, dtype=torch.float64)
            added[f"{path}.up.kernel"] = torch.zeros(4, after * WIDTH, dtype=torch.float64)
    found = references.lora(params | added, frames, alpha=8.0)
    assert torch.equal(found, references.clip(params, frames))


def test_merging_no_token_leaves_clip(params, frames):
    assert torch.equal(references.tome(params, frames, r=(0, 0)), references.clip(params, frames))


def test_merging_equal_tokens_changes_nothing(params, frames):
    """What proportional attention is for: a merged token weighs as much as the equal ones it was."""
    flat = params | {
        "tower.positional_embedding": params["tower.positional_embedding"][:1].expand(17, -1).clone()
    }
    pattern = frames[:, :, :8, :8].repeat(1, 1, 4, 4, 1)  # all 16 patches are the same
    expected = references.clip(flat, pattern)
    assert largest_difference(references.tome(flat, pattern, r=(5, 3)), expected) < 1e-12


def test_the_closest_pairs_merge_and_the_class_token_never():
    angles = torch.tensor([0.0, 90.0, 31.0, 30.0, 92.0, 0.0, 60.0]).deg2rad()  # token 0 equals token 5
    metric = torch.stack([angles.cos(), angles.sin()], dim=-1)[None]
    kept, merged, into = (part.tolist() for part in references.match_tokens(metric, 2, 1))
    assert (kept, merged, into) == ([6], [2, 4], [3, 1])
    kept, merged, into = (part.tolist() for part in references.match_tokens(metric, 99, 1))
    assert (kept, merged) == ([], [2, 4, 6])
    x = torch.arange(7.0)[None, None, :, None]
    size = torch.tensor([1.0, 1, 3, 1, 1, 1, 1])[None, None]
    means, sizes = references.merge_tokens(x, size, metric[None], 2, 1)
    assert sizes.flatten().tolist() == [1, 1, 2, 4, 1]
    assert means.flatten().tolist() == [0, 6, (1 + 4) / 2, (3 * 2 + 3) / 4, 5]


@pytest.mark.parametrize(
    "shifts",
    [(), ((-1, 1), (1, 1)), ((-1, 1), (1, 1), (-2, 1), (2, 1)), ((-1, 2), (1, 2), (-2, 1), (2, 1), (-3, 1))],
)
@pytest.mark.parametrize("time", [1, 2, 4])
def test_shifted_heads_one_by_one(shifts, time):
    x = torch.randn(2, time, 3, 16, 5)
    expected = x.clone()
    offsets = [offset for offset, heads in shifts for _ in range(heads)]
    for head, offset in enumerate(offsets):
        for t in range(time):
            if 0 <= t + offset < time:
                expected[:, t, :, head] = x[:, t + offset, :, head]
    assert torch.equal(references.shift_heads(x, shifts), expected)
