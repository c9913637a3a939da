"""Read UCF101's annotations: a list of classes, and lists of each fold's training and test videos."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from inti_jax.data.builders.annotations import (
    Annotations,
    Listed,
    in_order,
    read_lines,
    read_splits,
    shown,
    unknown_label,
    whole_number,
)
from inti_jax.data.builders.tree import Tree
from inti_jax.errors import UserError


def read(tree: Tree, fold: int) -> Annotations:
    """Read `classInd.txt`, `trainlist0<fold>.txt` and `testlist0<fold>.txt`, which is `val`.

    Raises UserError, naming file and row.
    """
    classes = tree.text("classInd.txt")
    labels = _read_classes(classes)
    numbers = {label: number for number, label in enumerate(labels, start=1)}

    def rows(path: Path) -> Iterator[Listed]:
        for row, line in read_lines(path):
            where = f"{path} row {row}"
            name, _, number = line.partition(" ")
            parts = PurePosixPath(name).parts
            if len(parts) != 2 or ".." in parts or name.startswith("/"):
                raise UserError(
                    f"{where}: {shown(name)} should be a class and a file: Class/v_Class_g01_c01.avi"
                )
            label, stem = parts[0], PurePosixPath(name).stem
            if label not in numbers:
                unknown_label(label, labels, where, classes)
            if number.strip() not in ("", str(numbers[label])):
                raise UserError(f"{where}: `{label}` is {numbers[label]} in {classes}, not {shown(number)}")
            yield Listed(f"{label}/{stem}", label, path, row, (stem,), folder=label)

    lists = {"train": (f"trainlist0{fold}.txt", None), "val": (f"testlist0{fold}.txt", None)}
    return Annotations(labels, read_splits(tree.lists(lists), rows))


def _read_classes(path: Path) -> tuple[str, ...]:
    pairs = []
    for row, line in read_lines(path):
        text, _, label = line.partition(" ")
        number = whole_number(text)
        if number is None:
            raise UserError(f"{path} row {row}: {shown(line)} should be a number and a class")
        pairs.append((label.strip(), number))
    return in_order(pairs, 1, path)
