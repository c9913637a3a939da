"""Define how the tokens of a backbone's last block become the feature of a frame.

A pooling reduces a frame's tokens to one vector, then finishes the vector. The tower's last LayerNorm is in
one of the two steps. They are apart because ST-Adapter averages the frames of a video between them.
"""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from inti_jax.config.backbones import BackboneSize, Numerics
from inti_jax.models.adapters import NOTHING
from inti_jax.models.block import Attention, LayerNorm, Mlp


@runtime_checkable
class Pooling(Protocol):
    """The steps from tokens to a feature; `norm` is the tower's last LayerNorm."""

    def reduce(
        self, x: Float[Array, "B N D"], sizes: Float[Array, "B N"] | None, norm: LayerNorm
    ) -> Float[Array, "B D"]:
        """Reduce each frame to one vector.

        `sizes` are the patches that each token stands for, None as long as that is one.
        """

    def weights(
        self, x: Float[Array, "B N D"], sizes: Float[Array, "B N"] | None, norm: LayerNorm
    ) -> Float[Array, "B N"]:
        """Compute the share of each token in what `reduce` gives of its frame, in float32."""

    def finish(self, reduced: Float[Array, "*B D"], norm: LayerNorm) -> Float[Array, "*B D"]:
        """Compute features from what `reduce` gave, or from means of that."""

    def macs(self, tokens: int, frames: int) -> int:
        """Count the multiply-accumulates for `frames` frames of `tokens` tokens."""


class ClassToken(nnx.Module):
    """CLIP's pooling: the class token, normalised."""

    def reduce(
        self, x: Float[Array, "B N D"], sizes: Float[Array, "B N"] | None, norm: LayerNorm
    ) -> Float[Array, "B D"]:
        """Select the class token, which is the first."""
        return x[:, 0]

    def weights(
        self, x: Float[Array, "B N D"], sizes: Float[Array, "B N"] | None, norm: LayerNorm
    ) -> Float[Array, "B N"]:
        """Give 1 to the class token."""
        return jnp.zeros(x.shape[:2], jnp.float32).at[:, 0].set(1)

    def finish(self, reduced: Float[Array, "*B D"], norm: LayerNorm) -> Float[Array, "*B D"]:
        """Normalise."""
        return norm(reduced)

    def macs(self, tokens: int, frames: int) -> int:
        """Count nothing: there is no product."""
        return 0


class MeanOfPatches(nnx.Module):
    """The mean of the patches, normalised."""

    def __init__(self, prefix_tokens: int):
        self.prefix_tokens = prefix_tokens

    def reduce(
        self, x: Float[Array, "B N D"], sizes: Float[Array, "B N"] | None, norm: LayerNorm
    ) -> Float[Array, "B D"]:
        """Average the patches; a token counts as often as it stands for patches."""
        patches = x[:, self.prefix_tokens :]
        if sizes is None:
            return patches.mean(axis=1)
        weights = rearrange(sizes[:, self.prefix_tokens :], "b n -> b n 1")
        return ((patches * weights).sum(axis=1) / weights.sum(axis=1)).astype(x.dtype)

    def weights(
        self, x: Float[Array, "B N D"], sizes: Float[Array, "B N"] | None, norm: LayerNorm
    ) -> Float[Array, "B N"]:
        """Give each token its share of the patches."""
        counts = jnp.ones(x.shape[:2], jnp.float32) if sizes is None else sizes
        counts = counts.at[:, : self.prefix_tokens].set(0)
        return counts / counts.sum(axis=1, keepdims=True)

    def finish(self, reduced: Float[Array, "*B D"], norm: LayerNorm) -> Float[Array, "*B D"]:
        """Normalise."""
        return norm(reduced)

    def macs(self, tokens: int, frames: int) -> int:
        """Count nothing: there is no product."""
        return 0


class AttentionPooling(nnx.Module):
    """SigLIP's pooling (arXiv:2303.15343): a learned token, the probe, attends to the normalised tokens.

    A LayerNorm and an MLP follow, with a residual around them.
    """

    def __init__(self, size: BackboneSize, *, numerics: Numerics, dtype: DTypeLike, rngs: nnx.Rngs):
        init = nnx.initializers.normal(size.width**-0.5)
        self.probe = nnx.Param(init(rngs.params(), (size.width,)))
        self.attn = Attention(size.width, size.heads, dtype=dtype, rngs=rngs)
        self.ln_mlp = LayerNorm(size.width, eps=numerics.eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(size.width, size.mlp_width, numerics=numerics, dtype=dtype, rngs=rngs)

    def reduce(
        self, x: Float[Array, "B N D"], sizes: Float[Array, "B N"] | None, norm: LayerNorm
    ) -> Float[Array, "B D"]:
        """Normalise the tokens and pool them; a token draws attention in proportion to its patches."""
        y = self.attn.mix(*self._query_keys_values(norm(x)), NOTHING, sizes)
        return (y + self.mlp(self.ln_mlp(y), NOTHING))[:, 0]

    def weights(
        self, x: Float[Array, "B N D"], sizes: Float[Array, "B N"] | None, norm: LayerNorm
    ) -> Float[Array, "B N"]:
        """Compute the probe's attention, averaged over the heads."""
        q, k, _ = self._query_keys_values(norm(x))
        return self.attn.probabilities(q, k, sizes).mean(axis=1)[:, 0]

    def _query_keys_values(
        self, x: Float[Array, "B N D"]
    ) -> tuple[Float[Array, "B 1 A Dh"], Float[Array, "B N A Dh"], Float[Array, "B N A Dh"]]:
        """Compute the probe's query, and the keys and values of the normalised tokens."""
        probe = self.probe[...].astype(x.dtype)[None, None]
        (q,) = self._project(probe, slice(0, 1))
        k, v = self._project(x, slice(1, 3))
        return jnp.broadcast_to(q, (x.shape[0], *q.shape[1:])), k, v

    def _project(self, x: Float[Array, "B N D"], parts: slice) -> tuple[Float[Array, "B N A Dh"], ...]:
        """Compute some of queries, keys and values, which the packed kernel has in this order."""
        qkv = self.attn.qkv
        kernel = qkv.kernel[:, parts].astype(x.dtype)
        bias = qkv.bias[parts].astype(x.dtype)  # type: ignore[index]  # it has one
        return jnp.unstack(jnp.einsum("bnd,dpah->bnpah", x, kernel) + bias[None, None], axis=2)

    def finish(self, reduced: Float[Array, "*B D"], norm: LayerNorm) -> Float[Array, "*B D"]:
        """Return the features as they are: the LayerNorm came before the attention."""
        return reduced

    def macs(self, tokens: int, frames: int) -> int:
        """Count keys, values, both products of attention, the output matrix and the MLP; the query once."""
        fc, proj = self.mlp.fc, self.mlp.proj
        width = fc.in_features
        mlp = fc.in_features * fc.out_features + proj.in_features * proj.out_features
        each = 2 * tokens * width**2 + 2 * tokens * width + width**2 + mlp
        return width**2 + frames * each


def build_pooling(size: BackboneSize, *, numerics: Numerics, dtype: DTypeLike, rngs: nnx.Rngs) -> Pooling:
    """Build the pooling that `size.pooling` names."""
    match size.pooling:
        case "class_token":
            return ClassToken()
        case "patches":
            return MeanOfPatches(size.prefix_tokens)
        case "attention":
            return AttentionPooling(size, numerics=numerics, dtype=dtype, rngs=rngs)
