"""Define CLIP's text tower (arXiv:2103.00020).

Its blocks are those of the image tower with causal attention: a token sees itself and those before it.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from inti_jax.config.backbones import OPENAI, Numerics
from inti_jax.models.block import Block, LayerNorm


@dataclasses.dataclass(frozen=True)
class TextSize:
    """The shape of a text tower."""

    width: int
    layers: int
    heads: int
    vocabulary: int
    context: int  # tokens of a text, including its start and end tokens
    end_token: int  # id of the token that ends a text; features are read there


class TextTower(nnx.Module):
    """The text encoder: token ids to one feature for each text, in the space shared with images."""

    def __init__(
        self,
        size: TextSize,
        embed: int,
        *,
        numerics: Numerics = OPENAI,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.token_embedding = nnx.Embed(
            size.vocabulary,
            size.width,
            embedding_init=nnx.initializers.normal(0.02),
            dtype=dtype,
            rngs=rngs,
        )
        init = nnx.initializers.normal(0.01)
        self.positional_embedding = nnx.Param(init(rngs.params(), (size.context, size.width)))
        self.blocks = nnx.List(
            [
                Block(
                    size.width,
                    size.heads,
                    4 * size.width,
                    causal=True,
                    numerics=numerics,
                    dtype=dtype,
                    rngs=rngs,
                )
                for _ in range(size.layers)
            ]
        )
        self.ln_final = LayerNorm(size.width, eps=numerics.eps, dtype=dtype, rngs=rngs)
        self.projection = nnx.Linear(size.width, embed, use_bias=False, dtype=dtype, rngs=rngs)
        self.end_token = size.end_token
        self.dtype = dtype

    def embed(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """Compute the input of the first block from token ids, at most `context` for each text."""
        positions = self.positional_embedding[: tokens.shape[1]].astype(self.dtype)
        return self.token_embedding(tokens) + positions[None]

    def pool(self, x: Float[Array, "B L D"], tokens: Int[Array, "B L"]) -> Float[Array, "B D"]:
        """Select the token at the first `end_token` of each text, which must hold one, and normalise it."""
        last = jnp.argmax(tokens == self.end_token, axis=1)
        return self.ln_final(jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0])

    def __call__(self, tokens: Int[Array, "B L"]) -> Float[Array, "B E"]:
        """Compute the feature of each text."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.projection(self.pool(x, tokens))
