"""Read Something-Something V2's annotations: JSON lists of videos, and the numbers of their templates."""

from collections.abc import Iterator
from pathlib import Path

from inti_jax.data.builders.annotations import (
    Annotations,
    Listed,
    check_name,
    in_order,
    read_entries,
    read_json,
    read_splits,
    shown,
    unknown_label,
    whole_number,
)
from inti_jax.data.builders.tree import Tree
from inti_jax.errors import UserError

_PREFIX = "(?:something-something-v2-)?"


def read(tree: Tree) -> Annotations:
    """Read `labels.json` (label to number), `train.json` and `validation.json`, or their longer names.

    A video's label is its template without the brackets. Raises UserError, naming file and row.
    """
    labels_file = tree.text("labels.json", _PREFIX + r"labels\.json")
    labels = _read_labels(labels_file)
    known = set(labels)

    def rows(path: Path) -> Iterator[Listed]:
        for row, entry in read_entries(path, ("id", "template")):
            where = f"{path} row {row} of the list"
            video = check_name(entry["id"], "id", where)
            if not isinstance(entry["template"], str):
                raise UserError(f"{where}: the template should be a text, not {shown(entry['template'])}")
            label = entry["template"].translate({ord("["): None, ord("]"): None}).strip()
            if label not in known:
                unknown_label(label, labels, where, labels_file)
            yield Listed(video, label, path, row, (video,))

    lists = {
        "train": ("train.json", _PREFIX + r"train\.json"),
        "val": ("validation.json", _PREFIX + r"(?:validation|val)\.json"),
    }
    return Annotations(labels, read_splits(tree.lists(lists), rows))


def _read_labels(path: Path) -> tuple[str, ...]:
    numbers = read_json(path)
    if not isinstance(numbers, dict):
        raise UserError(f"{path} should be an object, from labels to numbers")
    pairs = []
    for label, value in numbers.items():
        number = whole_number(value)
        if number is None:
            raise UserError(f"{path}: {shown(label)} should have a whole number, not {shown(value)}")
        pairs.append((label.strip(), number))
    return in_order(pairs, 0, path)
