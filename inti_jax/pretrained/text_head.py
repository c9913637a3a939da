"""A classifier from class names: CLIP's zero-shot classification (arXiv:2103.00020, section 3.1)."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float


def class_embeddings(
    encode: Callable[[Sequence[str]], Float[np.ndarray, "B E"]],
    names: Sequence[str],
    templates: Sequence[str],
) -> Float[np.ndarray, "K E"]:
    """A unit vector for each class: its prompts' unit features, averaged. `{}` is where the name goes.

    `encode` gives texts' features.
    """
    prompts = [template.replace("{}", name) for name in names for template in templates]
    features = _unit(encode(prompts)).reshape(len(names), len(templates), -1)
    return _unit(features.mean(axis=1))


def _unit(x: Float[np.ndarray, "*b E"]) -> Float[np.ndarray, "*b E"]:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
