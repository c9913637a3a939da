"""Find the label of a mirrored video from the labels' texts, in which left and right trade places."""

import re
from collections.abc import Sequence

from inti_jax.errors import UserError

_ENDINGS = ("", "ward", "wards", "most", "hand", "handed", "side")
_PAIRS = (
    *((f"left{ending}", f"right{ending}") for ending in _ENDINGS),
    ("clockwise", "counterclockwise"),
    ("cw", "ccw"),
)
_MIRRORED = dict(_PAIRS) | {right: left for left, right in _PAIRS}
_SIDE = re.compile(rf"\b(?:{'|'.join(_MIRRORED)})\b")
# Phrases in which neither word is a side: "pulling it right out", "something left over".
_NO_SIDE = re.compile(
    r"\b(?:right (?:out(?! of)|away|now|next to|angles?|side up)|left (?:over|behind|alone))\b"
)


def mirrored_labels(labels: Sequence[str]) -> tuple[int, ...]:
    """Map each label to the index of the label that its videos have when mirrored left to right.

    A label that names no side keeps its own index. Spelling is free: `push_left`, `PushLeft`,
    `anti-clockwise`. Raises UserError for a label that names a side and has no partner, or several.
    """
    texts = [_words(label) for label in labels]
    index = {text: number for number, text in enumerate(texts)}
    partners: list[int] = []
    for number, text in enumerate(texts):
        mirrored = _SIDE.sub(lambda match: _MIRRORED[match[0]], text)
        if mirrored in index and index[text] == number:
            partners.append(index[mirrored])
        elif not _SIDE.search(_NO_SIDE.sub("", text)):
            partners.append(number)
        else:
            raise UserError(
                f"`data.flip` cannot mirror label `{labels[number]}`: exactly one other label should be "
                f"`{mirrored}`; set `data.flip=False`"
            )
    return tuple(partners)


def _words(label: str) -> str:
    """Split a label into words in lower case, with single spaces."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label)
    words = " ".join(re.findall(r"[^\W\d_]+|\d+", spaced.lower()))
    return re.sub(r"\b(?:counter|anti) ?clockwise\b", "counterclockwise", words)
