"""The video model: a CLIP image tower over frames, with layers between its blocks that halve them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from inti_jax.config import BACKBONES, Model
from inti_jax.models.compressors import Compressor, build_compressor
from inti_jax.models.vit import Block, ImageTower

# Of OpenAI's CLIP, for pixels in [0, 1].
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def normalize(pixels: UInt8[Array, "*b H W 3"], dtype: DTypeLike) -> Float[Array, "*b H W 3"]:
    """Pixels to the scale CLIP was trained with. Done on the device: uint8 is a quarter of the transfer."""
    scale, shift = 1 / (255 * CLIP_STD), -CLIP_MEAN / CLIP_STD
    shape = (1,) * (pixels.ndim - 1) + (3,)
    return (pixels.astype(jnp.float32) * scale.reshape(shape) + shift.reshape(shape)).astype(dtype)


class VideoModel(nnx.Module):
    """Logits for videos of any T that the compressors can halve.

    A stage is the run of blocks that share one T; a compressor ends each stage but the last.
    """

    def __init__(self, config: Model, classes: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        size = BACKBONES[config.backbone]
        self.tower = ImageTower(size, dtype=dtype, rngs=rngs)
        self.compressors = nnx.List(
            [
                build_compressor(config.compression, size.width, self.tower.grid, dtype=dtype, rngs=rngs)
                for _ in config.compression.after
            ]
        )
        self.head = nnx.Linear(
            size.width, classes, kernel_init=nnx.initializers.normal(0.02), dtype=jnp.float32, rngs=rngs
        )
        self.size = size
        self.after = config.compression.after
        self.remat = config.remat
        self.dtype = dtype

    def __call__(self, video: UInt8[Array, "B T H W 3"]) -> Float[Array, "B K"]:
        return self.head(self.features(video))

    def features(self, video: UInt8[Array, "B T H W 3"]) -> Float[Array, "B D"]:
        """The mean over the last stage's frames of their normalised class tokens, in float32."""
        batch = video.shape[0]
        x = self.tower.embed(normalize(rearrange(video, "b t h w c -> (b t) h w c"), self.dtype))
        for blocks, compressor in self._stages():
            for block in blocks:
                x = jax.checkpoint(block)(x) if self.remat else block(x)
            if compressor is not None:
                x = rearrange(x, "(b t) n d -> b t n d", b=batch)
                x = rearrange(compressor(x), "b t n d -> (b t) n d")
        class_tokens = self.tower.ln_post(x[:, 0]).astype(jnp.float32)
        return rearrange(class_tokens, "(b t) d -> b t d", b=batch).mean(axis=1)

    def macs(self, frames: int) -> int:
        """Multiply-accumulates of the forward pass over one view of `frames` frames.

        Matrix products and blends count; LayerNorm, softmax and activations do not, as in the
        tables of the published methods.
        """
        total = frames * self.tower.embed_macs()
        for blocks, compressor in self._stages():
            total += frames * sum(block.macs(self.tower.tokens) for block in blocks)
            if compressor is not None:
                total += compressor.macs(frames)
                frames //= 2
        return total + self.head.in_features * self.head.out_features

    def _stages(self) -> list[tuple[list[Block], Compressor | None]]:
        """The blocks of each stage and the compressor that ends it."""
        blocks = list(self.tower.blocks)
        edges = (0, *self.after, len(blocks))
        stages = [blocks[start:end] for start, end in itertools.pairwise(edges)]
        return list(zip(stages, (*self.compressors, None), strict=True))
