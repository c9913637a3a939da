"""Splits: how they are called in sources, and which videos become `val` where a source has none."""

import hashlib
import re
from collections.abc import Sequence

from inti_jax.data.builders.annotations import Absent
from inti_jax.data.builders.files import Found

_NAMES = {
    "train": ("train", "training", "trainset"),
    "val": ("val", "valid", "validate", "validation", "valset", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "testset"),
}
_SPLIT_OF = {name: split for split, names in _NAMES.items() for name in names}
# Words beside a split's name: `videos_train`, `Val Set`, `rawframes-test`, `train_256`.
_BESIDE = re.compile(r"videos?|clips?|data|set|split|frames|rawframes|images|rgb|\d+p?", re.ASCII)


def split_named(name: str) -> str | None:
    """Name the split that a folder's name or a table's cell means: `train`, `val`, `test`, or None."""
    words = [word for word in re.split(r"[\W_]+", name.lower()) if word and not _BESIDE.fullmatch(word)]
    return _SPLIT_OF.get(words[0]) if len(words) == 1 else None


def assign(found: Sequence[Found], val_share: float) -> list[str]:
    """Give each file its split: what the source says, else by the rank of its id's hash in its class.

    Of each class `val_share` becomes `val`, at least one video and never all. What is known to be no video
    has no part in that and is listed under `train`.
    """
    ranks: dict[str, list[str]] = {}
    for file in sorted(found, key=lambda file: hashlib.sha256(file.id.encode()).digest()):
        if not isinstance(file.source, Absent):
            ranks.setdefault(file.label, []).append(file.id)
    val = set()
    for ids in ranks.values():
        count = round(len(ids) * val_share)
        if val_share > 0:
            count = max(1, min(count, len(ids) - 1)) if len(ids) > 1 else 0
        val.update(ids[:count])
    return [file.split or ("val" if file.id in val else "train") for file in found]
