"""Define the text tower of CLIP (arXiv:2103.00020) and SigLIP (arXiv:2303.15343).

Its blocks are those of the image tower. In CLIP attention is causal: a token sees itself and those before it.
In SigLIP all tokens see each other, padding too.
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
    end_token: int | None  # id of the token that ends a text; features are read there; None: at the last
    mlp: int | None = None  # channels inside the MLP; None for four times the width
    causal: bool = True  # whether a token sees only itself and those before it
    bias: bool = False  # whether the projection has one

    @property
    def mlp_width(self) -> int:
        """The number of channels inside the MLP."""
        return 4 * self.width if self.mlp is None else self.mlp


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
                    size.mlp_width,
                    causal=size.causal,
                    numerics=numerics,
                    dtype=dtype,
                    rngs=rngs,
                )
                for _ in range(size.layers)
            ]
        )
        self.ln_final = LayerNorm(size.width, eps=numerics.eps, dtype=dtype, rngs=rngs)
        self.projection = nnx.Linear(size.width, embed, use_bias=size.bias, dtype=dtype, rngs=rngs)
        self.end_token = size.end_token
        self.dtype = dtype

    def embed(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """Compute the input of the first block from token ids, at most `context` for each text."""
        positions = self.positional_embedding[: tokens.shape[1]].astype(self.dtype)
        return self.token_embedding(tokens) + positions[None]

    def pool(self, x: Float[Array, "B L D"], tokens: Int[Array, "B L"]) -> Float[Array, "B D"]:
        """Select the token where the feature is read, and normalise it.

        It is at the first `end_token` of each text, which must hold one, or else the last.
        """
        if self.end_token is None:
            return self.ln_final(x[:, -1])
        last = jnp.argmax(tokens == self.end_token, axis=1)
        return self.ln_final(jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0])

    def __call__(self, tokens: Int[Array, "B L"]) -> Float[Array, "B E"]:
        """Compute the feature of each text."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.projection(self.pool(x, tokens))
