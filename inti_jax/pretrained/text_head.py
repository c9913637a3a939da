"""A classifier from class names: CLIP's zero-shot classification (arXiv:2103.00020, section 3.1)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from inti_jax.errors import UsageError
from inti_jax.pretrained.api import ClipModel


def class_embeddings(
    clip: ClipModel, names: Sequence[str], templates: Sequence[str]
) -> Float[np.ndarray, "K E"]:
    """A unit vector for each class: its prompts' unit features, averaged. `{}` is where the name goes.

    Raises UsageError for a template without `{}`, UserError where the file has no text tower.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise UsageError(f"the prompt template {template!r} should have one {{}} for the class name")
    prompts = [template.replace("{}", name) for name in names for template in templates]
    features = _unit(clip.encode_text(prompts)).reshape(len(names), len(templates), -1)
    return _unit(features.mean(axis=1))


def zero_shot_logits(
    clip: ClipModel, features: Float[np.ndarray, "B E"], classes: Float[np.ndarray, "K E"]
) -> Float[np.ndarray, "B K"]:
    """CLIP's logits: cosines of image features (as `encode_image` gives them), times its learned scale."""
    return clip.logit_scale * _unit(features) @ classes.T


def _unit(x: Float[np.ndarray, "*b E"]) -> Float[np.ndarray, "*b E"]:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
