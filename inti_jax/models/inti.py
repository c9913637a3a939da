"""Blend each group of neighbouring frames into one, by weights computed from context: the InTI layer.

It follows arXiv:2408.06840, of which only the abstract is public. By that, two tokens at the same position of
neighbouring frames are blended linearly, by weights from a multi-scale, context-aware network. The scales,
widths and initialisation are our choices, and so are groups of more than two frames.
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
from inti_jax.models.block import LayerNorm

Grid = tuple[int, int]


def start_logits(config: Compression) -> Float[Array, " {config.group}"]:
    """Compute the logits of the weights with which a blend starts, by `config.start`.

    "mean": all frames of a group have the same weight. "first": the first frame has `config.first_weight`,
    and the others share the rest.
    """
    if config.start == "mean":
        return jnp.zeros(config.group)
    others = (1 - config.first_weight) / (config.group - 1)
    weights = jnp.full(config.group, others, jnp.float32).at[0].set(config.first_weight)
    return jnp.log(weights) if config.normalizer == "softmax" else jax.scipy.special.logit(weights)


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


@jax.custom_vjp
def _blend(groups: Float[Array, "B S g N D"], weights: Float[Array, "B S N g"]) -> Float[Array, "B S N D"]:
    """Sum the g frames of each group, weighted; the backward pass accesses memory less often than JAX's."""
    frames = (groups[:, :, i] * weights[..., i, None] for i in range(weights.shape[-1]))
    return functools.reduce(jnp.add, frames)


def _blend_forward(groups: Array, weights: Array) -> tuple[Array, tuple[Array, Array]]:
    return _blend(groups, weights), (groups, weights)


def _blend_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    """Compute the gradients of all frames in one pass. JAX's pads those of each g-th frame and adds them."""
    groups, weights = kept
    spread = gradient[:, :, None]
    shares = (groups * spread).sum(axis=-1)
    return jnp.moveaxis(weights, -1, 2)[..., None] * spread, jnp.moveaxis(shares, 2, -1)


_blend.defvjp(_blend_forward, _blend_backward)


class InTI(nnx.Module):
    """The InTI layer, which blends the frames g*i to g*i + g - 1 into frame i, token by token.

    y[i, n] = sum over k of w[i, n, k] * x[g*i + k, n], for groups of g = `config.group` frames. The weights
    are positive and sum to 1.

    They are computed from the tokens of all frames of the group, narrowed to `config.width` channels each and
    concatenated. The context is the sum of up to four branches: `point` sees a token's own position, `local`
    the 3x3 positions around it, `region` 3x3 positions three apart (a 7x7 window), and `global` the mean over
    the patches of all frames.

    The `prefix_tokens` tokens before the patches, such as the class token, have no place on the grid. By
    `config.class_token` their weights come from the `point` and `global` branches, each token's own ("own"),
    are the mean of the patches' weights ("patches"), or are equal ("mean").

    The last linear layer starts with a kernel of zeros, so the layer starts as a fixed blend: see
    `start_logits`.
    """

    def __init__(
        self,
        width: int,
        config: Compression,
        grid: Grid,
        *,
        prefix_tokens: int,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        channels = config.group * config.width
        self.norm = LayerNorm(width, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(width, config.width, use_bias=False, dtype=dtype, rngs=rngs)
        if "point" in config.scales:
            self.point = nnx.Linear(channels, channels, dtype=dtype, rngs=rngs)
        if "local" in config.scales:
            self.local = DepthwiseConv(channels, dilation=1, dtype=dtype, rngs=rngs)
        if "region" in config.scales:
            self.region = DepthwiseConv(channels, dilation=3, dtype=dtype, rngs=rngs)
        if "global" in config.scales:
            self.frame = nnx.Linear(channels, channels, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(
            channels,
            config.group,
            kernel_init=nnx.initializers.zeros,
            bias_init=lambda *_: start_logits(config),
            dtype=dtype,
            rngs=rngs,
        )
        self.ratio: int = config.group
        self.scales: Sequence[str] = config.scales
        self.normalizer = config.normalizer
        self.class_token = config.class_token
        self.grid = grid
        self.prefix_tokens = prefix_tokens

    @jax.named_scope("inti")
    def __call__(self, x: Float[Array, "B T N D"]) -> Float[Array, "B T//{self.ratio} N D"]:
        """Blend each group of frames."""
        groups = self._grouped(x)
        return _blend(groups, self._weights(groups).astype(x.dtype))

    def weights(self, x: Float[Array, "B T N D"]) -> Float[Array, "B T//{self.ratio} N {self.ratio}"]:
        """Compute the weights of a group's frames in each blended token, in float32."""
        return self._weights(self._grouped(x))

    def _grouped(self, x: Float[Array, "B T N D"]) -> Float[Array, "B S g N D"]:
        """Give the frames of a group a dimension of their own.

        All steps have it: XLA for TPUs fuses no broadcast of a gradient with a reshape behind it.
        """
        return rearrange(x, "b (s g) n d -> b s g n d", g=self.ratio)

    def _weights(self, groups: Float[Array, "B S g N D"]) -> Float[Array, "B S N g"]:
        batch = groups.shape[0]
        narrow = rearrange(self._narrow(groups), "b s g n c -> (b s) n (g c)")
        logits = self.out(jax.nn.gelu(self._context(narrow), approximate=False)).astype(jnp.float32)
        logits = rearrange(logits, "(b s) n g -> b s n g", b=batch)
        if self.normalizer == "softmax":
            weights = jax.nn.softmax(logits, axis=-1)
        else:
            gates = jax.nn.sigmoid(logits)
            weights = gates / gates.sum(axis=-1, keepdims=True)
        match self.class_token:
            case "mean":
                return weights.at[:, :, : self.prefix_tokens].set(1 / self.ratio)
            case "patches":
                patches = weights[:, :, self.prefix_tokens :].mean(axis=2, keepdims=True)
                return weights.at[:, :, : self.prefix_tokens].set(patches)
            case _:
                return weights

    def _narrow(self, x: Float[Array, "B S g N D"]) -> Float[Array, "B S g N C"]:
        """Compute `down(norm(x))`, where the normalised tokens never exist.

        LayerNorm is linear but for its statistics, so it may follow the product: both passes read the tokens
        less often, and all gradients but the tokens' have few channels.
        """
        scale, bias, kernel = self.norm.scale, self.norm.bias, self.down.kernel[...]
        assert scale is not None and bias is not None  # Flax's norms may have neither
        dtype, wide = self.down.dtype, jnp.promote_types(x.dtype, jnp.float32)
        exact = x.astype(wide)
        mean = exact.mean(axis=-1, keepdims=True)
        # Its gradient by the mean is zero.
        variance = jnp.square(exact - jax.lax.stop_gradient(mean)).mean(axis=-1, keepdims=True)
        scaled = (scale[...][:, None] * kernel).astype(dtype)
        product = jnp.matmul(x.astype(dtype), scaled, preferred_element_type=wide)
        centred = product - mean * scaled.astype(wide).sum(axis=0)[None, None, None, None]
        deviation = jnp.sqrt(variance + self.norm.epsilon)
        shift = (bias[...][:, None] * kernel).sum(axis=0)
        return (centred / deviation + shift[None, None, None, None]).astype(dtype)

    def _context(self, groups: Float[Array, "G N C"]) -> Float[Array, "G N C"]:
        """Sum the branches; those on the grid are added to the patches only."""
        patches = groups[:, self.prefix_tokens :]
        context = jnp.zeros_like(groups)
        if "point" in self.scales:
            context += self.point(groups)
        if "global" in self.scales:
            context += self.frame(patches.mean(axis=1, keepdims=True))
        height, width = self.grid
        on_grid = rearrange(patches, "g (h w) c -> g h w c", h=height, w=width)
        neighbours = jnp.zeros_like(on_grid)
        if "local" in self.scales:
            neighbours += self.local(on_grid)
        if "region" in self.scales:
            neighbours += self.region(on_grid)
        return context.at[:, self.prefix_tokens :].add(rearrange(neighbours, "g h w c -> g (h w) c"))

    def macs(self, frames: int) -> int:
        """Count the multiply-accumulates for one video with `frames` frames before the layer."""
        width = self.norm.num_features
        narrow = self.down.out_features
        groups, patches, channels = frames // self.ratio, self.grid[0] * self.grid[1], self.ratio * narrow
        tokens = self.prefix_tokens + patches
        total = frames * tokens * width * narrow  # `down`
        total += groups * tokens * channels * self.ratio  # `out`
        total += frames * tokens * width  # the blend
        if "point" in self.scales:
            total += groups * tokens * channels**2
        if "global" in self.scales:
            total += groups * channels**2
        for scale in ("local", "region"):
            if scale in self.scales:
                total += groups * patches * 9 * channels
        return total
