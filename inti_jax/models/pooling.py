"""Define how the tokens of a backbone's last block become the feature of a frame.

A pooling reduces a frame's tokens to one vector, then finishes the vector with the tower's last LayerNorm.
The two steps are apart because ST-Adapter averages the frames of a video between them.
"""

from typing import Protocol, runtime_checkable

from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from inti_jax.config.backbones import BackboneSize
from inti_jax.models.block import LayerNorm


@runtime_checkable
class Pooling(Protocol):
    """The steps from tokens to a feature; `norm` is the tower's last LayerNorm."""

    def reduce(
        self, x: Float[Array, "B N D"], sizes: Float[Array, "B N"] | None, norm: LayerNorm
    ) -> Float[Array, "B D"]:
        """Reduce each frame to one vector.

        `sizes` are the patches that each token stands for, None as long as that is one.
        """

    def finish(self, reduced: Float[Array, "*B D"], norm: LayerNorm) -> Float[Array, "*B D"]:
        """Compute features from what `reduce` gave, or from means of that."""


class ClassToken(nnx.Module):
    """CLIP's pooling: the class token, normalised."""

    def reduce(
        self, x: Float[Array, "B N D"], sizes: Float[Array, "B N"] | None, norm: LayerNorm
    ) -> Float[Array, "B D"]:
        """Select the class token, which is the first."""
        return x[:, 0]

    def finish(self, reduced: Float[Array, "*B D"], norm: LayerNorm) -> Float[Array, "*B D"]:
        """Normalise."""
        return norm(reduced)


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

    def finish(self, reduced: Float[Array, "*B D"], norm: LayerNorm) -> Float[Array, "*B D"]:
        """Normalise."""
        return norm(reduced)


def build_pooling(size: BackboneSize) -> Pooling:
    """Build the pooling that `size.pooling` names."""
    match size.pooling:
        case "class_token":
            return ClassToken()
        case "patches":
            return MeanOfPatches(size.prefix_tokens)
