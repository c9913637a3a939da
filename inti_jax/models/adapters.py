"""Define the small modules that adaptation methods add to a block, and the places that they have there.

Each module starts without effect: it gives zero or, where it adds to its input, the input. Those that have a
place in a block count their multiply-accumulates for one frame with `macs(tokens)`.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from inti_jax.models.dropout import Key, dropout
from inti_jax.models.remat import keep

_DOWN_INIT = nnx.initializers.truncated_normal(0.02)


class Adapter(nnx.Module):
    """AIM's bottleneck adapter (arXiv:2302.03024): down, exact GELU, up; `skip` adds the input."""

    def __init__(self, width: int, inner: int, *, skip: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.down = nnx.Linear(width, inner, kernel_init=_DOWN_INIT, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(inner, width, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)
        self.skip = skip

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Apply the adapter."""
        y = self.up(jax.nn.gelu(keep(self.down(x)), approximate=False))
        return x + y if self.skip else y

    def macs(self, tokens: int) -> int:
        """Count the multiply-accumulates for one frame of `tokens` tokens."""
        return 2 * tokens * self.down.in_features * self.down.out_features


class LinearAdapter(nnx.Module):
    """ZeroI2V's linear adapter (arXiv:2310.01324): x + scale * up(down(x)).

    It folds into the matrix next to it; see fold.py.
    """

    def __init__(
        self, width: int, inner: int, *, scale: float, dropout: float, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.down = nnx.Linear(width, inner, kernel_init=_DOWN_INIT, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(inner, width, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)
        self.scale = scale
        self.dropout = dropout

    def __call__(self, x: Float[Array, "*B D"], key: Key | None = None) -> Float[Array, "*B D"]:
        """Apply the adapter; `key` turns on dropout between down and up."""
        return x + self.scale * self.up(dropout(keep(self.down(x)), self.dropout, key))

    def macs(self, tokens: int) -> int:
        """Count the multiply-accumulates for one frame of `tokens` tokens."""
        return 2 * tokens * self.down.in_features * self.down.out_features


class LowRank(nnx.Module):
    """LoRA's low-rank update of a matrix (arXiv:2106.09685): scale * x @ down @ up."""

    def __init__(
        self, inputs: int, outputs: int, *, rank: int, alpha: float, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        # Uniform, with the bound of torch's linear layers, as in the paper's own code.
        init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.down = nnx.Linear(inputs, rank, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(
            rank, outputs, use_bias=False, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs
        )
        self.scale = alpha / rank

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        """Compute the update of the matrix's output."""
        return self.scale * self.up(keep(self.down(x)))

    def macs(self, tokens: int) -> int:
        """Count the multiply-accumulates for one frame of `tokens` tokens."""
        return tokens * self.down.out_features * (self.down.in_features + self.up.out_features)


class TemporalConv(nnx.Module):
    """ST-Adapter's module (arXiv:2206.13559): down, depthwise convolution over three frames, up.

    Its output is added to the patches; the `prefix_tokens` tokens before them pass unchanged. The convolution
    pads with zeros before the first frame and after the last.
    """

    def __init__(self, width: int, inner: int, *, prefix_tokens: int, dtype: DTypeLike, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # as in torch's linear layers
        self.down = nnx.Linear(width, inner, kernel_init=init, dtype=dtype, rngs=rngs)
        self.conv = DepthwiseTime(inner, dtype=dtype)
        self.up = nnx.Linear(inner, width, kernel_init=init, dtype=dtype, rngs=rngs)
        self.prefix_tokens = prefix_tokens

    def __call__(self, x: Float[Array, "BT N D"], frames: int) -> Float[Array, "BT N D"]:
        """Add the output to the patches of videos of `frames` frames."""
        # The other tokens are narrowed too, though unused: slicing them off before would make a copy of the
        # patches, which would be kept for the backward pass.
        patches = keep(self.down(x))[:, self.prefix_tokens :]
        hidden = rearrange(patches, "(b t) n c -> b t n c", t=frames)
        added = self.up(rearrange(self.conv(hidden), "b t n c -> (b t) n c"))
        return x.at[:, self.prefix_tokens :].add(added)

    def macs(self, tokens: int) -> int:
        """Count the multiply-accumulates for one frame of `tokens` tokens."""
        width, inner = self.down.in_features, self.down.out_features
        return tokens * width * inner + (tokens - self.prefix_tokens) * (inner * width + 3 * inner)


class DepthwiseTime(nnx.Module):
    """Depthwise convolution over time: each channel's weighted sum of the previous, this and the next frame.

    Weights and bias start at zero.
    """

    def __init__(self, channels: int, *, dtype: DTypeLike):
        self.kernel = nnx.Param(jnp.zeros((3, channels)))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B T N C"]) -> Float[Array, "B T N C"]:
        """Convolve over T."""
        # The backward pass computes this again, rather than keep three shifted copies.
        return jax.checkpoint(self._convolve)(x)

    def _convolve(self, x: Float[Array, "B T N C"]) -> Float[Array, "B T N C"]:
        frames = x.shape[1]
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        taps = [padded[:, i : i + frames] * kernel[i][None, None, None] for i in range(3)]
        return taps[0] + taps[1] + taps[2] + bias[None, None, None]


# Modules that fold.py folds into the matrices next to them; a folded model does not have them.
FOLDING = (LinearAdapter, LowRank)

AddedModule = Adapter | LinearAdapter | LowRank | TemporalConv


class BlockAdapters(nnx.Module):
    """The modules added to one block, a module or None for each place, and how the block runs with them.

    `Block.run` takes them. By default nothing is added.
    """

    # The places, in the order of the forward pass. A `lora_*` module is beside the matrix of that name.
    before_attn: TemporalConv | None = None
    temporal_in: Adapter | None = None
    temporal_out: Adapter | None = None
    attn_in: LinearAdapter | None = None
    lora_query: LowRank | None = None
    lora_key: LowRank | None = None
    lora_value: LowRank | None = None
    lora_out: LowRank | None = None
    attn_out: Adapter | LinearAdapter | None = None
    before_mlp: TemporalConv | None = None
    mlp_in: LinearAdapter | None = None
    lora_fc: LowRank | None = None
    lora_proj: LowRank | None = None
    mlp_out: LinearAdapter | None = None
    mlp_beside: Adapter | None = None

    def __init__(
        self,
        modules: Mapping[str, AddedModule],
        *,
        prefix_tokens: int = 0,
        shifts: tuple[tuple[int, int], ...] = (),
        beside_scale: float = 1.0,
        drops_block: bool = False,
        merging: int = 0,
        merges_alike: bool = False,
    ):
        """Put `modules` at their places.

        `prefix_tokens` tokens are before the patches. `shifts` are those of `shift_heads`, and `beside_scale`
        is the factor on `mlp_beside`. With `drops_block`, stochastic depth drops the block's own branches
        too. `merging` patches of each frame are merged away; with `merges_alike`, the same ones in all frames
        of a video.
        """
        for place, module in modules.items():
            setattr(self, place, module)
        self.prefix_tokens = prefix_tokens
        self.shifts = shifts
        self.beside_scale = beside_scale
        self.drops_block = drops_block
        self.merging = merging
        self.merges_alike = merges_alike

    def by_place(self) -> dict[str, AddedModule]:
        """Give the modules by place, in the order of the forward pass."""
        found = {place: getattr(self, place) for place in PLACES}
        return {place: module for place, module in found.items() if module is not None}

    @property
    def relates_frames(self) -> bool:
        """True where a block's output for a frame depends on other frames of its video."""
        over_time = (self.before_attn, self.before_mlp, self.temporal_out)
        merges_alike = self.merging > 0 and self.merges_alike
        return merges_alike or bool(self.shifts) or any(module is not None for module in over_time)


PLACES = tuple(BlockAdapters.__annotations__)
NOTHING = BlockAdapters({})


class TemporalEmbedding(nnx.Module):
    """A learned vector for each frame of a clip, which starts at zero.

    For another number of frames than its own, it is interpolated linearly.
    """

    def __init__(self, frames: int, width: int):
        self.embedding = nnx.Param(jnp.zeros((frames, width)))

    def __call__(self, frames: int) -> Float[Array, "{frames} D"]:
        """Give the vectors for a clip of `frames` frames."""
        known = self.embedding[...]
        return (
            known if frames == known.shape[0] else jax.image.resize(known, (frames, known.shape[1]), "linear")
        )


def shift_heads(
    x: Float[Array, "B T N A Dh"], shifts: tuple[tuple[int, int], ...]
) -> Float[Array, "B T N A Dh"]:
    """Replace heads by those of other frames: ZeroI2V's STDHA (arXiv:2310.01324).

    Each (offset, heads) in `shifts` takes the next `heads` heads from the frame that is `offset` away. Where
    there is no such frame, the heads stay the frame's own.
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
