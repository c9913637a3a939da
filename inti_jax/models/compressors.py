"""Build the layers that make frames fewer between two blocks: InTI and the baselines it is compared with.

All share one interface: `[B, T, N, D] -> [B, T / r, N, D]`, where r is the layer's `ratio` and T a multiple
of it. Output frame i depends only on its group, the input frames r * i to r * i + r - 1. It is their sum with
`weights(x)`, token by token. `macs(frames)` is the cost for one video.
"""

import dataclasses
import functools
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from inti_jax.config import Compression
from inti_jax.models.inti import Grid, InTI, start_logits


@runtime_checkable
class Compressor(Protocol):
    """A layer that makes frames fewer between two blocks."""

    ratio: int  # the number of input frames that become one

    def __call__(self, x: Float[Array, "B T N D"], /) -> Float[Array, "B T//{self.ratio} N D"]:
        """Compress each group of `ratio` neighbouring frames into one."""

    def weights(self, x: Float[Array, "B T N D"], /) -> Float[Array, "B T//{self.ratio} N {self.ratio}"]:
        """Compute the weights of a group's frames in each blended token, in float32; they sum to 1."""

    def macs(self, frames: int) -> int:
        """Count the multiply-accumulates for one video with `frames` frames before the layer."""


class Mean(nnx.Module):
    """Baseline that takes the mean of a group."""

    def __init__(self, group: int, tokens: int, width: int):
        self.ratio = group
        self.tokens = tokens
        self.width = width

    def __call__(self, x: Float[Array, "B T N D"]) -> Float[Array, "B T//{self.ratio} N D"]:
        """Average each group of frames."""
        return functools.reduce(jnp.add, (x[:, i :: self.ratio] for i in range(self.ratio))) / self.ratio

    def weights(self, x: Float[Array, "B T N D"]) -> Float[Array, "B T//{self.ratio} N {self.ratio}"]:
        """Give the weights of a group's frames: equal ones."""
        return _for_all_tokens(jnp.full(self.ratio, 1 / self.ratio), x)

    def macs(self, frames: int) -> int:
        """Count the multiply-accumulates for one video of `frames` frames."""
        return frames * self.tokens * self.width


class Static(nnx.Module):
    """Baseline with one learned weight for each place in a group, the same for all tokens.

    It starts as InTI does. The weights are positive and sum to 1.
    """

    def __init__(self, config: Compression, tokens: int, width: int):
        self.logits = nnx.Param(start_logits(dataclasses.replace(config, normalizer="softmax")))
        self.ratio: int = config.group
        self.tokens = tokens
        self.width = width

    def __call__(self, x: Float[Array, "B T N D"]) -> Float[Array, "B T//{self.ratio} N D"]:
        """Blend each group of frames with the learned weights."""
        weights = jax.nn.softmax(self.logits[...]).astype(x.dtype)
        return functools.reduce(jnp.add, (weight * x[:, i :: self.ratio] for i, weight in enumerate(weights)))

    def weights(self, x: Float[Array, "B T N D"]) -> Float[Array, "B T//{self.ratio} N {self.ratio}"]:
        """Give the learned weights of a group's frames."""
        return _for_all_tokens(jax.nn.softmax(self.logits[...]), x)

    def macs(self, frames: int) -> int:
        """Count the multiply-accumulates for one video of `frames` frames."""
        return frames * self.tokens * self.width


class Drop(nnx.Module):
    """Baseline that keeps the first frame of a group and drops the others."""

    def __init__(self, group: int):
        self.ratio = group

    def __call__(self, x: Float[Array, "B T N D"]) -> Float[Array, "B T//{self.ratio} N D"]:
        """Keep the first frame of each group."""
        return x[:, :: self.ratio]

    def weights(self, x: Float[Array, "B T N D"]) -> Float[Array, "B T//{self.ratio} N {self.ratio}"]:
        """Give the weights of a group's frames: 1 for the first."""
        return _for_all_tokens(jnp.eye(self.ratio)[0], x)

    def macs(self, frames: int) -> int:
        """Count the multiply-accumulates for one video of `frames` frames."""
        return 0


def _for_all_tokens(
    weights: Float[Array, " g"], x: Float[Array, "B T N D"]
) -> Float[Array, "B T//{len(weights)} N {len(weights)}"]:
    batch, frames, tokens, _ = x.shape
    return jnp.broadcast_to(weights, (batch, frames // len(weights), tokens, len(weights)))


def build_compressor(
    config: Compression, width: int, grid: Grid, *, prefix_tokens: int, dtype: DTypeLike, rngs: nnx.Rngs
) -> Compressor:
    """Build the layer that `config.kind` names, for groups of `config.group` frames.

    A frame has `prefix_tokens` tokens, then one for each patch of `grid`, all of `width` channels. Raises
    ValueError for a kind that does not make frames fewer.
    """
    tokens = prefix_tokens + grid[0] * grid[1]
    match config.kind:
        case "inti":
            return InTI(width, config, grid, prefix_tokens=prefix_tokens, dtype=dtype, rngs=rngs)
        case "mean":
            return Mean(config.group, tokens, width)
        case "static":
            return Static(config, tokens, width)
        case "drop":
            return Drop(config.group)
        case _:
            raise ValueError(f"no compressor is built for kind {config.kind!r}")
