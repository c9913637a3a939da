"""Define the image tower: patches, positions, blocks and the pooling of their tokens.

With the defaults of `BackboneSize` it is CLIP's (arXiv:2103.00020); DINOv2's (arXiv:2304.07193) and SigLIP's
(arXiv:2303.15343) are others.

Tokens before the patches (`ImageTower.prefix_tokens`) are the class token and registers, in this order. A
backbone may have neither. N counts them.
"""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from inti_jax.config.backbones import OPENAI, BackboneSize, Numerics
from inti_jax.config.schema import AttentionKernel
from inti_jax.models.block import Block, LayerNorm
from inti_jax.models.pooling import build_pooling

# Paths of the modules and parameters that come before the blocks, in a model whose `tower` this is.
EMBEDDING = tuple(
    f"tower.{name}"
    for name in ("patch_embed", "class_embedding", "registers", "positional_embedding", "ln_pre")
)


class ImageTower(nnx.Module):
    """The image tower: patches, position embedding and blocks, without the projection to the text space.

    A video model calls `embed`, the `blocks`, `reduce` and `finish` separately, so that it can put layers
    between the blocks. Calling the tower runs them in order on single images.
    """

    def __init__(
        self,
        size: BackboneSize,
        *,
        numerics: Numerics = OPENAI,
        attention: AttentionKernel = "auto",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.patch_embed = nnx.Conv(
            3,
            size.width,
            (size.patch, size.patch),
            strides=size.patch,
            padding="VALID",
            use_bias=size.patch_bias,
            dtype=dtype,
            rngs=rngs,
        )
        init = nnx.initializers.normal(size.width**-0.5)
        if size.class_token:
            self.class_embedding = nnx.Param(init(rngs.params(), (size.width,)))
        patches = math.prod(size.grid)
        positions = patches + size.class_token  # registers have none
        self.positional_embedding = nnx.Param(init(rngs.params(), (positions, size.width)))
        if size.registers:
            self.registers = nnx.Param(init(rngs.params(), (size.registers, size.width)))
        self.ln_pre = (
            LayerNorm(size.width, eps=numerics.eps, dtype=dtype, rngs=rngs) if size.pre_norm else None
        )
        self.blocks = nnx.List(
            [
                Block(
                    size.width,
                    size.heads,
                    size.mlp_width,
                    gated=size.gated,
                    layer_scale=size.layer_scale,
                    numerics=numerics,
                    attention=attention,
                    dtype=dtype,
                    rngs=rngs,
                )
                for _ in range(size.layers)
            ]
        )
        self.ln_post = LayerNorm(size.width, eps=numerics.eps, dtype=dtype, rngs=rngs)
        self.pooling = build_pooling(size, numerics=numerics, dtype=dtype, rngs=rngs)
        self.grid = size.grid
        self.prefix_tokens = size.prefix_tokens
        self.tokens = patches + size.prefix_tokens
        self.dtype = dtype

    def embed(
        self, images: Float[Array, "B H W 3"], offset: Float[Array, "B D"] | None = None
    ) -> Float[Array, "B N D"]:
        """Compute the tokens that enter the first block, from normalised images at the tower's resolution.

        `offset` is added to all tokens of an image, before the LayerNorm, as the position embedding is.
        """
        return self.place(self.project(images), offset)

    @jax.named_scope("embed")
    def project(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B P D"]:
        """Project the patches of normalised images: the first step of `embed`."""
        return rearrange(self.patch_embed(images), "b h w d -> b (h w) d")

    @jax.named_scope("embed")
    def place(
        self, x: Float[Array, "B P D"], offset: Float[Array, "B D"] | None = None
    ) -> Float[Array, "B N D"]:
        """Make tokens of projected patches, with their positions: the rest of `embed`."""
        if hasattr(self, "class_embedding"):
            x = self._prepend(self.class_embedding[...][None], x)
        x = x + self.positional_embedding[...].astype(self.dtype)[None]
        if hasattr(self, "registers"):
            first = self.prefix_tokens - len(self.registers[...])
            x = jnp.concatenate([x[:, :first], self._prepend(self.registers[...], x[:, first:])], axis=1)
        x = x if offset is None else x + offset.astype(self.dtype)[:, None]
        return x if self.ln_pre is None else self.ln_pre(x)

    def _prepend(self, learned: Float[Array, "P D"], x: Float[Array, "B N D"]) -> Float[Array, "B P+N D"]:
        """Put the learned tokens in front of each image's."""
        tokens = jnp.broadcast_to(learned.astype(self.dtype)[None], (x.shape[0], *learned.shape))
        return jnp.concatenate([tokens, x], axis=1)

    def embed_macs(self) -> int:
        """Count the multiply-accumulates of `embed` for one image."""
        return math.prod(self.grid) * math.prod(self.patch_embed.kernel.shape)

    def reduce(
        self, x: Float[Array, "B N D"], sizes: Float[Array, "B N"] | None = None
    ) -> Float[Array, "B D"]:
        """Reduce the tokens of the last block to one vector for each frame; see `Pooling`."""
        return self.pooling.reduce(x, sizes, self.ln_post)

    def pooling_weights(
        self, x: Float[Array, "B N D"], sizes: Float[Array, "B N"] | None = None
    ) -> Float[Array, "B N"]:
        """Compute the share of each token in what `reduce` gives of its frame; see `Pooling`."""
        return self.pooling.weights(x, sizes, self.ln_post)

    def finish(self, reduced: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Compute features from what `reduce` gave, or from means of that."""
        return self.pooling.finish(reduced, self.ln_post)

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
        """Compute the feature of each image: with CLIP, its normalised class token."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.finish(self.reduce(x))
