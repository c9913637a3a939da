"""Define CLIP (arXiv:2103.00020): an image tower and a text tower with features in one space.

SigLIP (arXiv:2303.15343) is one without a projection of the image tower's feature.
"""

import dataclasses
import math

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from inti_jax.config.backbones import BackboneSize, Numerics
from inti_jax.models.text import TextSize, TextTower
from inti_jax.models.vit import ImageTower


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The shape of a CLIP or SigLIP model.

    A model with an image tower alone has `text` None, and may have `embed` None.
    """

    image: BackboneSize
    embed: int | None  # width of the space that images and texts share
    text: TextSize | None
    numerics: Numerics

    @property
    def sigmoid(self) -> bool:
        """True for SigLIP: pooled features are in the shared space, and logits have a bias."""
        return self.image.pooling == "attention"


class CLIP(nnx.Module):
    """Image and text encoders that share one feature space.

    Features are not normalised. `logit_scale` is the learned logarithm of the factor on cosines, and
    `logit_bias`, of SigLIP alone, is what is added then.
    """

    def __init__(self, architecture: Architecture, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        image, embed, text = architecture.image, architecture.embed, architecture.text
        numerics = architecture.numerics
        self.tower = ImageTower(image, numerics=numerics, dtype=dtype, rngs=rngs)
        if embed is not None:
            if not architecture.sigmoid:
                self.projection = nnx.Linear(image.width, embed, use_bias=False, dtype=dtype, rngs=rngs)
            if text is not None:
                self.text = TextTower(text, embed, numerics=numerics, dtype=dtype, rngs=rngs)
                if architecture.sigmoid:  # as both start there
                    self.logit_scale = nnx.Param(jnp.asarray(math.log(10)))
                    self.logit_bias = nnx.Param(jnp.asarray(-10.0))
                else:
                    self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / 0.07)))
        self.architecture = architecture

    def encode_image(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B E"]:
        """Compute the features of normalised images at the tower's resolution.

        A model without a projection gives the tower's own features.
        """
        feature = self.tower(images)
        return self.projection(feature) if hasattr(self, "projection") else feature

    def encode_text(self, tokens: Int[Array, "B L"]) -> Float[Array, "B E"]:
        """Compute the features of texts, given as token ids.

        Each row must hold the end token, or with SigLIP be as long as the context. The model must have a text
        tower.
        """
        return self.text(tokens)
