"""Embed class names for a classifier: CLIP's zero-shot classification (arXiv:2103.00020, section 3.1)."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float


def class_name(label: str) -> str:
    """Write a label as words: `brush_hair` as "brush hair", `ApplyEyeMakeup` as "apply eye makeup".

    A single word in camel case (UCF101's labels) is cut at its capitals and put in small letters. A label
    with spaces or underscores, or with a single small letter in front (iPhone), keeps its capitals, since
    they do not mark words there.
    """
    name = " ".join(label.replace("_", " ").split())
    if name != label or " " in name or (name[1:2].isupper() and name[0].islower()):
        return name
    starts = [i for i in range(1, len(name)) if name[i].isupper() and _is_new_word(name, i)]
    if not starts:
        return name
    return " ".join(name[start:end] for start, end in zip([0, *starts], [*starts, None], strict=True)).lower()


def _is_new_word(name: str, i: int) -> bool:
    """Tell whether the capital at `i` starts a word: after a small letter or digit, or as P in HTMLPage."""
    before, after = name[i - 1], name[i + 1 : i + 2]
    return before.islower() or before.isdigit() or (before.isupper() and after.islower())


def class_embeddings(
    encode: Callable[[Sequence[str]], Float[np.ndarray, "B E"]],
    names: Sequence[str],
    templates: Sequence[str],
) -> Float[np.ndarray, "K E"]:
    """Compute a unit vector for each class: the normalised mean of its prompts' unit features.

    The name replaces `{}` in each template. `encode` computes texts' features.
    """
    prompts = [template.replace("{}", name) for name in names for template in templates]
    features = _unit(encode(prompts)).reshape(len(names), len(templates), -1)
    return _unit(features.mean(axis=1))


def _unit(x: Float[np.ndarray, "*b E"]) -> Float[np.ndarray, "*b E"]:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
