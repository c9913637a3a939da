"""The small modules that adaptation methods add to a block's branches.

All but the convolution start as nothing: they give zero, or with a skip connection their input. Each counts
its own multiply-accumulates, `macs(tokens, ...)` for one frame.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from inti_jax.models.dropout import Key, dropout
from inti_jax.models.kept import keep

_DOWN_INIT = nnx.initializers.truncated_normal(0.02)


class Adapter(nnx.Module):
    """AIM's bottleneck (arXiv:2302.03024): down, exact GELU, up; `skip` adds the input."""

    def __init__(self, width: int, inner: int, *, skip: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.down = nnx.Linear(width, inner, kernel_init=_DOWN_INIT, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(inner, width, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)
        self.skip = skip

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = self.up(jax.nn.gelu(keep(self.down(x)), approximate=False))
        return x + y if self.skip else y

    def macs(self, tokens: int) -> int:
        return 2 * tokens * self.down.in_features * self.down.out_features


class LinearAdapter(nnx.Module):
    """ZeroI2V's (arXiv:2310.01324): x + scale * up(down(x)), which folds into the matrix next to it."""

    def __init__(
        self, width: int, inner: int, *, scale: float, dropout: float, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.down = nnx.Linear(width, inner, kernel_init=_DOWN_INIT, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(inner, width, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)
        self.scale = scale
        self.dropout = dropout

    def __call__(self, x: Float[Array, "*B D"], key: Key | None = None) -> Float[Array, "*B D"]:
        return x + self.scale * self.up(dropout(keep(self.down(x)), self.dropout, key))

    def macs(self, tokens: int) -> int:
        return 2 * tokens * self.down.in_features * self.down.out_features


class LowRank(nnx.Module):
    """LoRA's update of a matrix (arXiv:2106.09685): scale * x @ down @ up."""

    def __init__(
        self, inputs: int, outputs: int, *, rank: int, alpha: float, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        # Uniform with the bound of torch's linear layers, as in the paper's own code.
        init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.down = nnx.Linear(inputs, rank, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(
            rank, outputs, use_bias=False, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs
        )
        self.scale = alpha / rank

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        return self.scale * self.up(keep(self.down(x)))

    def macs(self, tokens: int) -> int:
        return tokens * self.down.out_features * (self.down.in_features + self.up.out_features)


class TemporalConv(nnx.Module):
    """ST-Adapter's (arXiv:2206.13559): down, depthwise convolution over three frames, up.

    It is added to the patches; the class token passes. Beyond the first and last frame there are zeros.
    """

    def __init__(self, width: int, inner: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # torch's
        self.down = nnx.Linear(width, inner, kernel_init=init, dtype=dtype, rngs=rngs)
        self.conv = DepthwiseTime(inner, dtype=dtype)
        self.up = nnx.Linear(inner, width, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "BT N D"], frames: int) -> Float[Array, "BT N D"]:
        # The class token is narrowed for nothing: else a copy of the others is kept for the backward pass.
        hidden = rearrange(keep(self.down(x))[:, 1:], "(b t) n c -> b t n c", t=frames)
        added = self.up(rearrange(self.conv(hidden), "b t n c -> (b t) n c"))
        return x.at[:, 1:].add(added)

    def macs(self, tokens: int) -> int:
        inner = self.down.out_features
        return (tokens - 1) * (2 * self.down.in_features * inner + 3 * inner)


class DepthwiseTime(nnx.Module):
    """Each channel's weighted sum of the frame before, this and the next; starts at zero."""

    def __init__(self, channels: int, *, dtype: DTypeLike):
        self.kernel = nnx.Param(jnp.zeros((3, channels)))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B T N C"]) -> Float[Array, "B T N C"]:
        return jax.checkpoint(self._convolve)(x)  # rather than keep three shifted copies

    def _convolve(self, x: Float[Array, "B T N C"]) -> Float[Array, "B T N C"]:
        frames = x.shape[1]
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        taps = [padded[:, i : i + frames] * kernel[i][None, None, None] for i in range(3)]
        return taps[0] + taps[1] + taps[2] + bias[None, None, None]


class TemporalEmbedding(nnx.Module):
    """A vector for each frame of a clip, at first zero; interpolated for another number of frames."""

    def __init__(self, frames: int, width: int):
        self.embedding = nnx.Param(jnp.zeros((frames, width)))

    def __call__(self, frames: int) -> Float[Array, "{frames} D"]:
        known = self.embedding[...]
        return (
            known if frames == known.shape[0] else jax.image.resize(known, (frames, known.shape[1]), "linear")
        )


def shift_heads(
    x: Float[Array, "B T N A Dh"], shifts: tuple[tuple[int, int], ...]
) -> Float[Array, "B T N A Dh"]:
    """ZeroI2V's STDHA: for each (offset, heads), that many more heads are the frame's `offset` away.

    Where there is no such frame, they keep their own.
    """
    frames, first, parts = x.shape[1], 0, []
    for offset, heads in shifts:
        group = x[..., first : first + heads, :]
        reach = min(abs(offset), frames)
        own = group[:, :reach] if offset < 0 else group[:, frames - reach :]
        other = group[:, : frames - reach] if offset < 0 else group[:, reach:]
        parts.append(jnp.concatenate([own, other] if offset < 0 else [other, own], axis=1))
        first += heads
    return jnp.concatenate([*parts, x[..., first:, :]], axis=-2)
