"""Define CLIP's image tower (arXiv:2103.00020), and the transformer block that its text tower shares.

Blocks normalise before attention and MLP; the image tower also has a LayerNorm before the first block. The
activation and the LayerNorm epsilon are those of the checkpoint; the defaults are OpenAI's, QuickGELU and
1e-5. Blocks see `[B*T, N, D]`. N counts the class token, which is token 0.

The backward pass computes LayerNorm, activation and attention weights again from the outputs of the matrix
products. What is kept is then mostly the inputs of matrices that train, and a frozen tower has none.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from inti_jax.config.backbones import OPENAI, BackboneSize, Numerics
from inti_jax.models.remat import keep

_PROJECTION_INIT = nnx.initializers.lecun_normal()


def quick_gelu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Compute x * sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def attend(
    q: Float[Array, "B N A Dh"],
    k: Float[Array, "B N A Dh"],
    v: Float[Array, "B N A Dh"],
    *,
    bias: Float[Array, "B 1 1 N"] | None = None,
    causal: bool = False,
) -> Float[Array, "B N A Dh"]:
    """Compute attention, with the softmax in float32.

    Its logits are scaled by 1/sqrt(head size), and `bias` is added to them. With `causal`, a token sees
    itself and the tokens before it.
    """
    attended = jax.checkpoint(partial(jax.nn.dot_product_attention, is_causal=causal))(q, k, v, bias)
    return keep(attended)


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": partial(jax.nn.gelu, approximate=False),
}


class LayerNorm(nnx.LayerNorm):
    """LayerNorm with torch's default epsilon; its variance takes two passes in float32 for any `dtype`."""

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:  # type: ignore[override]
        """Normalise the last dimension; the backward pass computes this again."""
        return jax.checkpoint(super().__call__)(x)

    def __init__(self, width: int, *, eps: float = OPENAI.eps, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(width, epsilon=eps, use_fast_variance=False, dtype=dtype, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head self-attention over the tokens of one frame; one packed kernel gives q, k and v.

    With `causal`, a token sees itself and the tokens before it.
    """

    def __init__(self, width: int, heads: int, *, causal: bool = False, dtype: DTypeLike, rngs: nnx.Rngs):
        per_head = width // heads
        self.qkv = nnx.LinearGeneral(
            width, (3, heads, per_head), kernel_init=_PROJECTION_INIT, dtype=dtype, rngs=rngs
        )
        self.out = nnx.LinearGeneral(
            (heads, per_head), width, axis=(-2, -1), kernel_init=_PROJECTION_INIT, dtype=dtype, rngs=rngs
        )
        self.causal = causal
        self.head_size = per_head

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Attend among the tokens of each frame."""
        return self.out(attend(*self.project(x), causal=self.causal))

    def project(self, x: Float[Array, "B N D"]) -> tuple[Array, Array, Array]:
        """Compute queries, keys and values, `[B, N, A, Dh]` each."""
        q, k, v = jnp.unstack(self.qkv(x), axis=-3)
        return q, k, v


class Mlp(nnx.Module):
    """The MLP of a block: two layers with the activation between them, four times as wide inside."""

    def __init__(self, width: int, *, numerics: Numerics = OPENAI, dtype: DTypeLike, rngs: nnx.Rngs):
        self.fc = nnx.Linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.proj = nnx.Linear(4 * width, width, dtype=dtype, rngs=rngs)
        self._activation = _ACTIVATIONS[numerics.activation]

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Apply the MLP to each token."""
        return self.proj(self.activate(self.fc(x)))

    def activate(self, x: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
        """Apply the activation; the backward pass computes this again."""
        return jax.checkpoint(self._activation)(x)


class Block(nnx.Module):
    """One transformer block: attention, then MLP, each with a LayerNorm before and a residual around it."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        causal: bool = False,
        numerics: Numerics = OPENAI,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.ln_1 = LayerNorm(width, eps=numerics.eps, dtype=dtype, rngs=rngs)
        self.attn = Attention(width, heads, causal=causal, dtype=dtype, rngs=rngs)
        self.ln_2 = LayerNorm(width, eps=numerics.eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, numerics=numerics, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Run the block."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))

    def attention_macs(self, tokens: int) -> int:
        """Count the multiply-accumulates of the attention among `tokens` tokens."""
        return 4 * tokens * self.mlp.fc.in_features**2 + self.attention_product_macs(tokens)

    def attention_product_macs(self, tokens: int) -> int:
        """Count those of `attention_macs` that multiply activations with each other."""
        return 2 * tokens**2 * self.mlp.fc.in_features

    def mlp_macs(self, tokens: int) -> int:
        """Count the multiply-accumulates of the MLP on `tokens` tokens."""
        return 8 * tokens * self.mlp.fc.in_features**2


class ImageTower(nnx.Module):
    """CLIP's image tower: patches, position embedding and blocks, without the projection to the text space.

    A video model calls `embed`, the `blocks` and `ln_post` separately, so that it can put layers between the
    blocks. Calling the tower runs them in order on single images.
    """

    def __init__(
        self,
        size: BackboneSize,
        *,
        numerics: Numerics = OPENAI,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        grid = size.resolution // size.patch
        self.patch_embed = nnx.Conv(
            3,
            size.width,
            (size.patch, size.patch),
            strides=size.patch,
            padding="VALID",
            use_bias=False,
            dtype=dtype,
            rngs=rngs,
        )
        init = nnx.initializers.normal(size.width**-0.5)
        self.class_embedding = nnx.Param(init(rngs.params(), (size.width,)))
        self.positional_embedding = nnx.Param(init(rngs.params(), (grid * grid + 1, size.width)))
        self.ln_pre = LayerNorm(size.width, eps=numerics.eps, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(
            [
                Block(size.width, size.heads, numerics=numerics, dtype=dtype, rngs=rngs)
                for _ in range(size.layers)
            ]
        )
        self.ln_post = LayerNorm(size.width, eps=numerics.eps, dtype=dtype, rngs=rngs)
        self.grid = (grid, grid)
        self.tokens = grid * grid + 1
        self.dtype = dtype

    def embed(
        self, images: Float[Array, "B H W 3"], offset: Float[Array, "B D"] | None = None
    ) -> Float[Array, "B N D"]:
        """Compute the tokens that enter the first block, from normalised images at the tower's resolution.

        `offset` is added to all tokens of an image, before the LayerNorm, as the position embedding is.
        """
        patches = rearrange(self.patch_embed(images), "b h w d -> b (h w) d")
        class_token = jnp.broadcast_to(
            self.class_embedding[...].astype(self.dtype), (patches.shape[0], 1, patches.shape[-1])
        )
        x = jnp.concatenate([class_token, patches], axis=1)
        x = x + self.positional_embedding[...].astype(self.dtype)[None]
        return self.ln_pre(x if offset is None else x + offset.astype(self.dtype)[:, None])

    def embed_macs(self) -> int:
        """Count the multiply-accumulates of `embed` for one image."""
        return (self.tokens - 1) * math.prod(self.patch_embed.kernel.shape)

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
        """Compute the normalised class token of each image."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.ln_post(x[:, 0])
