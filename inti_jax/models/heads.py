"""Define the classifiers on a video's feature."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class LinearHead(nnx.Linear):
    """A linear classifier, in float32."""

    def __init__(self, width: int, classes: int, *, rngs: nnx.Rngs):
        super().__init__(width, classes, kernel_init=nnx.initializers.normal(0.02), rngs=rngs)

    def macs(self) -> int:
        """Count the multiply-accumulates for one feature."""
        return self.in_features * self.out_features


# Range of the logarithm of CLIP's factor on cosines, which is from 1 to 100 (arXiv:2103.00020, section 2.5).
LOGIT_SCALE_RANGE = (0.0, math.log(100))


class TextHead(nnx.Module):
    """CLIP's classifier, in float32: cosines with an embedding of each class, times a learned scale.

    With the projection, embeddings and scale of a CLIP, it gives CLIP's zero-shot logits. All three train.
    Without `projects` there is no projection, as in SigLIP, whose logits it gives without the bias that they
    share. The optimizer keeps the scale in `LOGIT_SCALE_RANGE` after each step, as CLIP's and open_clip's
    training do. A limit in the forward pass would have no gradient beyond it, and the scale could not come
    back.
    """

    def __init__(self, width: int, embed: int, classes: int, *, projects: bool = True, rngs: nnx.Rngs):
        self.projection = nnx.Linear(width, embed, use_bias=False, rngs=rngs) if projects else None
        self.classes = nnx.Linear(embed, classes, use_bias=False, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / 0.07)))

    def __call__(self, features: Float[Array, "B D"]) -> Float[Array, "B K"]:
        """Compute the logits of videos from their features."""
        projected = features if self.projection is None else self.projection(features)
        unit = projected / jnp.linalg.norm(projected, axis=-1, keepdims=True)
        return jnp.exp(self.logit_scale[...]) * self.classes(unit)

    def macs(self) -> int:
        """Count the multiply-accumulates for one feature."""
        embed = self.classes.in_features
        inner = 0 if self.projection is None else self.projection.in_features
        return inner * embed + embed * self.classes.out_features
