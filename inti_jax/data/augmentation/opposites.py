"""Find the labels of mirrored and reversed clips from the labels' texts, in which directions trade places."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from inti_jax import config
from inti_jax.errors import UserError

_TURNS = (("clockwise", "counterclockwise"), ("cw", "ccw"))
_SIDES = tuple(
    (f"left{ending}", f"right{ending}") for ending in ("", "ward", "wards", "most", "hand", "handed", "side")
)
_MOVEMENTS = (
    *((f"left{ending}", f"right{ending}") for ending in ("", "ward", "wards")),
    *((f"up{ending}", f"down{ending}") for ending in ("", "ward", "wards")),
    *((f"in{ending}", f"out{ending}") for ending in ("", "ward", "wards")),
    *((f"forward{ending}", f"backward{ending}") for ending in ("", "s")),
    *(("into", "out of"), ("on", "off"), ("onto", "off of"), ("towards", "away from")),
    *(("open", "close"), ("opens", "closes"), ("opening", "closing")),
    *(("push", "pull"), ("pushes", "pulls"), ("pushing", "pulling")),
    *(("raise", "lower"), ("raises", "lowers"), ("raising", "lowering")),
    *(("brighten", "dim"), ("brightens", "dims"), ("brightening", "dimming")),
    *((f"grow{ending}", f"shrink{ending}") for ending in ("", "s", "ing")),
    *((f"fold{ending}", f"unfold{ending}") for ending in ("", "s", "ing")),
    *((f"cover{ending}", f"uncover{ending}") for ending in ("", "s", "ing")),
)
# Phrases in which neither word is a side: "pulling it right out", "something left over".
_NO_SIDE = r"right (?:out(?! of)|away|now|next to|angles?|side up)|left (?:over|behind|alone)"
# Of these there are two, whatever moves: a left hand stays the left one when time runs backwards.
_LIMBS = r"(?:left|right) (?:hand|arm|elbow|wrist|palm|fist|thumb|finger|leg|knee|foot|eye|ear|side)(?:s|ed)?"


class _Words:
    """Words that trade places, given in pairs; where they are in a phrase of `fixed`, they do not."""

    def __init__(self, pairs: Sequence[tuple[str, str]], *, fixed: str = ""):
        self._other = dict(pairs) | {second: first for first, second in pairs}
        longest_first = sorted(self._other, key=len, reverse=True)
        fixed = rf"\b(?:{fixed})\b|" if fixed else ""
        self._pattern = re.compile(rf"{fixed}\b(?:{'|'.join(longest_first)})\b")
        self._no_side = re.compile(rf"\b(?:{_NO_SIDE})\b")

    def exchanged(self, text: str) -> str:
        """Replace each word by its partner."""
        return self._pattern.sub(lambda match: self._other.get(match[0], match[0]), text)

    def in_text(self, text: str) -> bool:
        """Tell whether the text has any of the words, apart from phrases in which they name no side."""
        text = self._no_side.sub("", text)
        return self.exchanged(text) != text


_MIRRORED = _Words((*_SIDES, *_TURNS))
_REVERSED = _Words((*_MOVEMENTS, *_TURNS), fixed=_LIMBS)


class Opposites(NamedTuple):
    """The label that a changed clip has instead of its own, by index.

    Clips with a label that is not a key are left as they are.
    """

    mirrored: Mapping[int, int]
    reversed: Mapping[int, int]


def find(labels: Sequence[str], cfg: config.Data) -> Opposites:
    """Find the labels of clips that `cfg.flip` mirrors and that `cfg.reverse` plays backwards.

    What is off changes none. Raises UserError as `mirrored_labels` and `reversed_labels` do.
    """
    return Opposites(
        mirrored_labels(labels, cfg.flip_labels) if cfg.flip else {},
        reversed_labels(labels, cfg.reverse_labels) if cfg.reverse else {},
    )


def mirrored_labels(labels: Sequence[str], only: Sequence[str] = ()) -> dict[int, int]:
    """Map the index of each label to that of the label that its videos have when mirrored left to right.

    A label that names no side keeps its own index. Spelling is free: `push_left`, `PushLeft`,
    `anti-clockwise`. If `only` is not empty, other labels are left out.

    Raises UserError for a label that names a side and has no partner, or several, and for a label in `only`
    that is no label or whose partner is not in `only`.
    """
    return _opposites(labels, only, _MIRRORED, key="flip", change="mirror")


def reversed_labels(labels: Sequence[str], only: Sequence[str] = ()) -> dict[int, int]:
    """Map the index of each label to that of the label that its videos have when played backwards.

    Directions of movement trade places, and verbs such as open and close. A label without such words keeps
    its own index, which its text does not prove to be right: a catch is a throw backwards. `only` and errors
    are those of `mirrored_labels`.
    """
    return _opposites(labels, only, _REVERSED, key="reverse", change="reverse")


def _opposites(
    labels: Sequence[str], only: Sequence[str], words: _Words, *, key: str, change: str
) -> dict[int, int]:
    if unknown := [label for label in only if label not in labels]:
        near = difflib.get_close_matches(unknown[0], labels, n=1, cutoff=0)
        raise UserError(
            f"`data.{key}_labels` has `{unknown[0]}`, which is no label of the dataset"
            + (f"; did you mean `{near[0]}`?" if near else "")
        )
    texts = [_words(label) for label in labels]
    index = {text: number for number, text in enumerate(texts)}
    partners: dict[int, int] = {}
    for number, (label, text) in enumerate(zip(labels, texts, strict=True)):
        if only and label not in only:
            continue
        opposite = words.exchanged(text)
        if opposite in index and index[text] == number:
            partners[number] = index[opposite]
        elif not words.in_text(text):
            partners[number] = number
        else:
            remedy = (
                f"leave it out of `data.{key}_labels`"
                if only
                else f"list in `data.{key}_labels` the labels that it may {change}"
            )
            raise UserError(
                f"`data.{key}` cannot {change} label `{label}`: exactly one other label should be "
                f"`{opposite}`; {remedy}, or set `data.{key}=False`"
            )
        if only and (partner := labels[partners[number]]) not in only:
            raise UserError(
                f"`data.{key}_labels` has `{label}` but not `{partner}`, which it is to trade places with: "
                "list both or neither"
            )
    return partners


def _words(label: str) -> str:
    """Split a label into words in lower case, with single spaces."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label)
    words = " ".join(re.findall(r"[^\W\d_]+|\d+", spaced.lower()))
    words = re.sub(r"\b(?:counter|anti) ?clockwise\b", "counterclockwise", words)
    return re.sub(r"\btoward\b", "towards", words)
