"""Layers that halve the frames between two blocks: InTI and the baselines it is compared with.

All share one interface: `[B, T, N, D] -> [B, T/2, N, D]` for even T, where output frame i depends on
input frames 2i and 2i+1 alone, and `macs(frames)`, their cost for one video.
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
    def __call__(self, x: Float[Array, "B T N D"], /) -> Float[Array, "B T//2 N D"]: ...

    def macs(self, frames: int) -> int: ...


class Mean(nnx.Module):
    """The mean of the two frames."""

    def __init__(self, tokens: int, width: int):
        self.tokens = tokens
        self.width = width

    def __call__(self, x: Float[Array, "B T N D"]) -> Float[Array, "B T//2 N D"]:
        return (x[:, 0::2] + x[:, 1::2]) / 2

    def macs(self, frames: int) -> int:
        return frames * self.tokens * self.width


class Static(nnx.Module):
    """One learned pair of weights for the layer, the same for every token; starts as the mean."""

    def __init__(self, tokens: int, width: int):
        self.logits = nnx.Param(jnp.zeros(2))
        self.tokens = tokens
        self.width = width

    def __call__(self, x: Float[Array, "B T N D"]) -> Float[Array, "B T//2 N D"]:
        earlier, later = jax.nn.softmax(self.logits[...]).astype(x.dtype)
        return earlier * x[:, 0::2] + later * x[:, 1::2]

    def macs(self, frames: int) -> int:
        return frames * self.tokens * self.width


class Drop(nnx.Module):
    """The earlier frame; the later one is dropped."""

    def __call__(self, x: Float[Array, "B T N D"]) -> Float[Array, "B T//2 N D"]:
        return x[:, 0::2]

    def macs(self, frames: int) -> int:
        return 0


def build_compressor(
    config: Compression, width: int, grid: Grid, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> Compressor:
    """The layer that `config.kind` names, for tokens of `width` on a patch grid of `grid`."""
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
