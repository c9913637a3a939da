"""Define CLIP (arXiv:2103.00020): an image tower and a text tower with features in one space."""

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
    """The shape of a CLIP model.

    A model with an image tower alone has `text` None, and may have `embed` None.
    """

    image: BackboneSize
    embed: int | None  # width of the space that images and texts share
    text: TextSize | None
    numerics: Numerics


class CLIP(nnx.Module):
    """Image and text encoders that share one feature space.

    Features are not normalised. `logit_scale` is the learned logarithm of the factor on cosines.
    """

    def __init__(self, architecture: Architecture, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        image, embed, text = architecture.image, architecture.embed, architecture.text
        numerics = architecture.numerics
        self.tower = ImageTower(image, numerics=numerics, dtype=dtype, rngs=rngs)
        if embed is not None:
            self.projection = nnx.Linear(image.width, embed, use_bias=False, dtype=dtype, rngs=rngs)
            if text is not None:
                self.text = TextTower(text, embed, numerics=numerics, dtype=dtype, rngs=rngs)
                self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / 0.07)))
        self.architecture = architecture

    def encode_image(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B E"]:
        """Compute the features of normalised images at the tower's resolution.

        A model without a projection gives the tower's own features.
        """
        feature = self.tower(images)
        return feature if self.architecture.embed is None else self.projection(feature)

    def encode_text(self, tokens: Int[Array, "B L"]) -> Float[Array, "B E"]:
        """Compute the features of texts, given as token ids.

        Each row must hold the end token. The model must have a text tower.
        """
        return self.text(tokens)
