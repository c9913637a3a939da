"""Build the layers that halve the frames between two blocks: InTI and the baselines it is compared with.

All share one interface: `[B, T, N, D] -> [B, T/2, N, D]` for even T. Output frame i depends on input frames
2i and 2i+1 only. `macs(frames)` is the cost for one video.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from inti_jax.config import Compression
from inti_jax.models.inti import Grid, InTI


@runtime_checkable
class Compressor(Protocol):
    """A layer that halves the frames between two blocks."""

    def __call__(self, x: Float[Array, "B T N D"], /) -> Float[Array, "B T//2 N D"]:
        """Compress each pair of neighbouring frames into one."""

    def macs(self, frames: int) -> int:
        """Count the multiply-accumulates for one video of `frames` frames, before they are halved."""


class Mean(nnx.Module):
    """Baseline that takes the mean of the two frames."""

    def __init__(self, tokens: int, width: int):
        self.tokens = tokens
        self.width = width

    def __call__(self, x: Float[Array, "B T N D"]) -> Float[Array, "B T//2 N D"]:
        """Average each pair of frames."""
        return (x[:, 0::2] + x[:, 1::2]) / 2

    def macs(self, frames: int) -> int:
        """Count the multiply-accumulates for one video of `frames` frames."""
        return frames * self.tokens * self.width


class Static(nnx.Module):
    """Baseline with one learned pair of weights, the same for every token; starts as the mean."""

    def __init__(self, tokens: int, width: int):
        self.logits = nnx.Param(jnp.zeros(2))
        self.tokens = tokens
        self.width = width

    def __call__(self, x: Float[Array, "B T N D"]) -> Float[Array, "B T//2 N D"]:
        """Blend each pair of frames with the learned weights."""
        earlier, later = jax.nn.softmax(self.logits[...]).astype(x.dtype)
        return earlier * x[:, 0::2] + later * x[:, 1::2]

    def macs(self, frames: int) -> int:
        """Count the multiply-accumulates for one video of `frames` frames."""
        return frames * self.tokens * self.width


class Drop(nnx.Module):
    """Baseline that keeps the earlier frame and drops the later one."""

    def __call__(self, x: Float[Array, "B T N D"]) -> Float[Array, "B T//2 N D"]:
        """Keep the earlier frame of each pair."""
        return x[:, 0::2]

    def macs(self, frames: int) -> int:
        """Count the multiply-accumulates for one video of `frames` frames."""
        return 0


def build_compressor(
    config: Compression, width: int, grid: Grid, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> Compressor:
    """Build the layer that `config.kind` names, for tokens of `width` channels on a patch grid of `grid`.

    Raises ValueError for a kind that does not halve the frames.
    """
    tokens = grid[0] * grid[1] + 1
    match config.kind:
        case "inti":
            return InTI(width, config, grid, dtype=dtype, rngs=rngs)
        case "mean":
            return Mean(tokens, width)
        case "static":
            return Static(tokens, width)
        case "drop":
            return Drop()
        case _:
            raise ValueError(f"no compressor is built for kind {config.kind!r}")
