"""Blend each pair of neighbouring frames into one, by weights computed from context: the InTI layer.

It follows arXiv:2408.06840, of which only the abstract is public. By that, two tokens at the same position of
neighbouring frames are blended linearly, by weights from a multi-scale, context-aware network. The scales,
widths and initialisation are our choices.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from inti_jax.config import Compression
from inti_jax.models.vit import LayerNorm

Grid = tuple[int, int]


class DepthwiseConv(nnx.Module):
    """Depthwise 3x3 convolution over the patch grid, padded with zeros.

    It is written as nine shifted multiply-adds, which XLA fuses into one pass over memory on every platform.
    Grouped convolutions are slow on CPU.
    """

    def __init__(self, channels: int, *, dilation: int, dtype: DTypeLike, rngs: nnx.Rngs):
        # The deviation is 1 / sqrt(fan-in): every output channel sees 9 inputs.
        self.kernel = nnx.Param(nnx.initializers.normal(1 / 3)(rngs.params(), (3, 3, channels)))
        self.dilation = dilation
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Convolve over the grid of h x w patches."""
        step = self.dilation
        height, width = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (step, step), (step, step), (0, 0)))
        kernel = self.kernel[...].astype(self.dtype)
        taps = (
            padded[:, i * step : i * step + height, j * step : j * step + width]
            * kernel[i, j][None, None, None]
            for i in range(3)
            for j in range(3)
        )
        return functools.reduce(jnp.add, taps)


class InTI(nnx.Module):
    """The InTI layer, which blends frames 2i and 2i+1 into frame i, token by token.

    y[i, n] = w[i, n, 0] * x[2i, n] + w[i, n, 1] * x[2i + 1, n]. The weights are positive and sum to 1.

    They are computed from the tokens of both frames, narrowed to `config.width` channels each. The context is
    the sum of up to four branches: `point` sees a token's own position, `local` the 3x3 positions around it,
    `region` 3x3 positions three apart (a 7x7 window), and `global` the mean over the patches of both frames.

    The class token has no place on the grid. By `config.class_token` its weights come from the `point` and
    `global` branches ("own"), are the mean of the patches' weights ("patches"), or are equal ("mean").

    The last linear layer starts at zero, so the InTI layer starts as the mean of the pair.
    """

    def __init__(
        self, width: int, config: Compression, grid: Grid, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        pair = 2 * config.width
        self.norm = LayerNorm(width, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(width, config.width, use_bias=False, dtype=dtype, rngs=rngs)
        if "point" in config.scales:
            self.point = nnx.Linear(pair, pair, dtype=dtype, rngs=rngs)
        if "local" in config.scales:
            self.local = DepthwiseConv(pair, dilation=1, dtype=dtype, rngs=rngs)
        if "region" in config.scales:
            self.region = DepthwiseConv(pair, dilation=3, dtype=dtype, rngs=rngs)
        if "global" in config.scales:
            self.frame = nnx.Linear(pair, pair, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(pair, 2, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)
        self.scales: Sequence[str] = config.scales
        self.normalizer = config.normalizer
        self.class_token = config.class_token
        self.grid = grid

    def __call__(self, x: Float[Array, "B T N D"]) -> Float[Array, "B T//2 N D"]:
        """Blend each pair of frames."""
        weights = self.weights(x)[..., None].astype(x.dtype)
        return weights[..., 0, :] * x[:, 0::2] + weights[..., 1, :] * x[:, 1::2]

    def weights(self, x: Float[Array, "B T N D"]) -> Float[Array, "B T//2 N 2"]:
        """Compute the weights of the earlier and the later frame in each blended token, in float32."""
        batch = x.shape[0]
        narrow = self.down(self.norm(x))
        pairs = rearrange(narrow, "b (t two) n d -> (b t) n (two d)", two=2)
        logits = self.out(jax.nn.gelu(self._context(pairs), approximate=False)).astype(jnp.float32)
        logits = rearrange(logits, "(b t) n two -> b t n two", b=batch)
        if self.normalizer == "softmax":
            weights = jax.nn.softmax(logits, axis=-1)
        else:
            gates = jax.nn.sigmoid(logits)
            weights = gates / gates.sum(axis=-1, keepdims=True)
        match self.class_token:
            case "mean":
                return weights.at[:, :, 0].set(0.5)
            case "patches":
                return weights.at[:, :, 0].set(weights[:, :, 1:].mean(axis=2))
            case _:
                return weights

    def _context(self, pairs: Float[Array, "P N C"]) -> Float[Array, "P N C"]:
        """Sum the branches; those on the grid are added to the patches only."""
        patches = pairs[:, 1:]
        context = jnp.zeros_like(pairs)
        if "point" in self.scales:
            context += self.point(pairs)
        if "global" in self.scales:
            context += self.frame(patches.mean(axis=1, keepdims=True))
        height, width = self.grid
        on_grid = rearrange(patches, "p (h w) c -> p h w c", h=height, w=width)
        neighbours = jnp.zeros_like(on_grid)
        if "local" in self.scales:
            neighbours += self.local(on_grid)
        if "region" in self.scales:
            neighbours += self.region(on_grid)
        return context.at[:, 1:].add(rearrange(neighbours, "p h w c -> p (h w) c"))

    def macs(self, frames: int) -> int:
        """Count the multiply-accumulates for one video of `frames` frames, before they are halved."""
        width = self.norm.num_features
        narrow = self.down.out_features
        pairs, patches, pair = frames // 2, self.grid[0] * self.grid[1], 2 * narrow
        tokens = patches + 1
        total = frames * tokens * width * narrow  # `down`
        total += pairs * tokens * pair * 2  # `out`
        total += pairs * tokens * 2 * width  # the blend
        if "point" in self.scales:
            total += pairs * tokens * pair**2
        if "global" in self.scales:
            total += pairs * pair**2
        for scale in ("local", "region"):
            if scale in self.scales:
                total += pairs * patches * 9 * pair
        return total
