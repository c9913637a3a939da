"""Recognise the names of splits in sources, and split the videos of a source that names none."""

import collections
import hashlib
import re
from collections.abc import Sequence

from inti_jax.data.builders.annotations import Absent
from inti_jax.data.builders.files import Found
from inti_jax.data.manifest import labels_in

_NAMES = {
    "train": ("train", "training", "trainset", "trainval"),
    "val": ("val", "valid", "validate", "validation", "valset", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "testset"),
}
_SPLIT_OF = {name: split for split, names in _NAMES.items() for name in names}
# Words to ignore beside a split's name: `videos_train`, `Val Set`, `rawframes-test`, `train_256`.
_BESIDE = re.compile(r"videos?|clips?|data|set|split|frames|rawframes|images|rgb|\d+p?", re.ASCII)


def split_named(name: str) -> str | None:
    """Return the split that a folder's name or a table's cell means: `train`, `val`, `test`, or None."""
    words = [word for word in re.split(r"[\W_]+", name.lower()) if word and not _BESIDE.fullmatch(word)]
    return _SPLIT_OF.get(words[0]) if len(words) == 1 else None


def assign(found: Sequence[Found], val_share: float, multi_label: bool = False) -> list[str]:
    """Return each file's split: from the source, or else by the rank of its id's hash in its class.

    A share `val_share` of each class becomes `val`: if it is above 0, at least one video, but never all. With
    `multi_label`, a video counts for the rarest of its labels alone.
    Files known not to be videos do not count; without a split from the source they are listed under `train`.
    """
    own = {file.id: labels_in(file.label, multi_label) for file in found}
    uses = collections.Counter(label for labels in own.values() for label in labels)
    ranks: dict[str, list[str]] = {}
    for file in sorted(found, key=lambda file: hashlib.sha256(file.id.encode()).digest()):
        if not isinstance(file.source, Absent):
            rarest = min(own[file.id], key=lambda label: (uses[label], label))
            ranks.setdefault(rarest, []).append(file.id)
    val = set()
    for ids in ranks.values():
        count = round(len(ids) * val_share)
        if val_share > 0:
            count = max(1, min(count, len(ids) - 1)) if len(ids) > 1 else 0
        val.update(ids[:count])
    return [file.split or ("val" if file.id in val else "train") for file in found]
