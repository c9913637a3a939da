"""The video model: a CLIP image tower over frames, with layers between its blocks that halve them."""

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from inti_jax.config import Model
from inti_jax.models.backbone import BACKBONES, Backbone
from inti_jax.models.compressors import Compressor, build_compressor
from inti_jax.models.heads import LinearHead, TextHead
from inti_jax.models.vit import Block, ImageTower


def normalize(
    pixels: UInt8[Array, "*b H W 3"], backbone: Backbone, dtype: DTypeLike
) -> Float[Array, "*b H W 3"]:
    """Pixels to the scale the backbone knows. Done on the device: uint8 is a quarter of the transfer."""
    mean, std = np.asarray(backbone.mean, np.float32), np.asarray(backbone.std, np.float32)
    shape = (1,) * (pixels.ndim - 1) + (3,)
    scale, shift = (1 / (255 * std)).reshape(shape), (-mean / std).reshape(shape)
    return (pixels.astype(jnp.float32) * scale + shift).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A run of blocks that share one T, and the compressor that ends it; the last stage has none."""

    blocks: Sequence[Block]
    frames: int  # T
    compressor: Compressor | None


class VideoModel(nnx.Module):
    """Logits for videos of any T that the compressors can halve."""

    def __init__(
        self,
        config: Model,
        classes: int,
        *,
        resolution: int | None = None,
        backbone: Backbone | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """`resolution`, in pixels a side, defaults to the backbone's own; `backbone` to OpenAI's facts."""
        named = BACKBONES[config.backbone]
        size = dataclasses.replace(named, resolution=resolution or named.resolution)
        self.backbone = backbone or Backbone()
        self.tower = ImageTower(size, numerics=self.backbone.numerics, dtype=dtype, rngs=rngs)
        self.compressors = nnx.List(
            [
                build_compressor(config.compression, size.width, self.tower.grid, dtype=dtype, rngs=rngs)
                for _ in config.compression.after
            ]
        )
        self.head: LinearHead | TextHead
        if config.head.init == "random":
            self.head = LinearHead(size.width, classes, rngs=rngs)
        elif self.backbone.embed is None:
            raise ValueError("a head that starts from class names needs a backbone with a text space")
        else:
            self.head = TextHead(size.width, self.backbone.embed, classes, rngs=rngs)
        self.size = size
        self.after = config.compression.after
        self.remat = config.remat
        self.dtype = dtype

    def __call__(self, video: UInt8[Array, "B T H W 3"]) -> Float[Array, "B K"]:
        return self.head(self.features(video))

    def features(self, video: UInt8[Array, "B T H W 3"]) -> Float[Array, "B D"]:
        """The mean over the last stage's frames of their normalised class tokens, in float32."""
        batch = video.shape[0]
        frames = rearrange(video, "b t h w c -> (b t) h w c")
        x = self.tower.embed(normalize(frames, self.backbone, self.dtype))
        for stage in self.stages(video.shape[1]):
            for block in stage.blocks:
                x = jax.checkpoint(block)(x) if self.remat else block(x)
            if stage.compressor is not None:
                x = rearrange(x, "(b t) n d -> b t n d", b=batch, t=stage.frames)
                x = rearrange(stage.compressor(x), "b t n d -> (b t) n d")
        class_tokens = self.tower.ln_post(x[:, 0]).astype(jnp.float32)
        return rearrange(class_tokens, "(b t) d -> b t d", b=batch).mean(axis=1)

    def macs(self, frames: int) -> int:
        """Multiply-accumulates of the forward pass over one view of `frames` frames.

        Matrix products and blends count; LayerNorm, softmax and activations do not, as in the
        tables of the published methods.
        """
        total = frames * self.tower.embed_macs() + self.head.macs()
        for stage in self.stages(frames):
            total += stage.frames * sum(block.macs(self.tower.tokens) for block in stage.blocks)
            if stage.compressor is not None:
                total += stage.compressor.macs(stage.frames)
        return total

    def stages(self, frames: int) -> list[Stage]:
        """The stages that a clip of `frames` frames goes through."""
        blocks = list(self.tower.blocks)
        edges = (0, *self.after, len(blocks))
        return [
            Stage(blocks[start:end], frames // 2**halvings, compressor)
            for halvings, ((start, end), compressor) in enumerate(
                zip(itertools.pairwise(edges), (*self.compressors, None), strict=True)
            )
        ]
