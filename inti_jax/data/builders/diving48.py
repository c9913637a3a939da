"""Read Diving48's annotations, version 2: JSON lists of videos, and the classes' vocabulary."""

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
)
from inti_jax.data.builders.tree import Tree
from inti_jax.errors import UserError


def read(tree: Tree) -> Annotations:
    """Read `Diving48_vocab.json`, `Diving48_V2_train.json` and `Diving48_V2_test.json`, which is `val`.

    A label is the class's parts joined by +: `Back+15som+05Twis+FREE`. Raises UserError, naming file and row.
    """
    vocabulary = tree.text("Diving48_vocab.json")
    labels = _read_vocabulary(vocabulary)

    def rows(path: Path) -> Iterator[Listed]:
        for row, entry in read_entries(path, ("vid_name", "label")):
            where = f"{path} row {row} of the list"
            video, number = check_name(entry["vid_name"], "vid_name", where), entry["label"]
            if type(number) is not int or not 0 <= number < len(labels):
                raise UserError(
                    f"{where}: the label {shown(number)} is not one of 0 to {len(labels) - 1}, "
                    f"the classes in {vocabulary}"
                )
            yield Listed(video, labels[number], path, row, (video,))

    lists = {"train": ("Diving48_V2_train.json", None), "val": ("Diving48_V2_test.json", None)}
    return Annotations(labels, read_splits(tree.lists(lists), rows))


def _read_vocabulary(path: Path) -> tuple[str, ...]:
    classes = read_json(path)
    pairs = []
    for number, parts in enumerate(classes if isinstance(classes, list) else [None]):
        parts = [parts] if isinstance(parts, str) else parts
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise UserError(f"{path} should be a list of classes, each a list of texts")
        pairs.append(("+".join(parts), number))
    return in_order(pairs, 0, path)
