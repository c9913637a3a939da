"""Classifiers on a video's feature."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class LinearHead(nnx.Linear):
    """One layer, in float32."""

    def __init__(self, width: int, classes: int, *, rngs: nnx.Rngs):
        super().__init__(width, classes, kernel_init=nnx.initializers.normal(0.02), rngs=rngs)

    def macs(self) -> int:
        return self.in_features * self.out_features


# CLIP's scale of cosines is a factor from 1 to 100 (arXiv:2103.00020, section 2.5), this its logarithm.
LOGIT_SCALE_RANGE = (0.0, math.log(100))


class TextHead(nnx.Module):
    """Classify as CLIP does, in float32: cosines with an embedding of each class, times a learned scale.

    With the projection, embeddings and scale of a CLIP it gives CLIP's zero-shot logits; all three train on.
    The optimizer keeps the scale in `LOGIT_SCALE_RANGE`, as CLIP's and open_clip's training do after each
    step: a limit in the forward pass would have no gradient beyond it, and so no way back.
    """

    def __init__(self, width: int, embed: int, classes: int, *, rngs: nnx.Rngs):
        self.projection = nnx.Linear(width, embed, use_bias=False, rngs=rngs)
        self.classes = nnx.Linear(embed, classes, use_bias=False, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / 0.07)))

    def __call__(self, features: Float[Array, "B D"]) -> Float[Array, "B K"]:
        projected = self.projection(features)
        unit = projected / jnp.linalg.norm(projected, axis=-1, keepdims=True)
        return jnp.exp(self.logit_scale[...]) * self.classes(unit)

    def macs(self) -> int:
        embed = self.classes.in_features
        return self.projection.in_features * embed + embed * self.classes.out_features
