"""Read Kinetics' annotations: CSV files with a row for each clip of a YouTube video."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from inti_jax.data.builders.annotations import (
    SPLITS,
    Annotations,
    Listed,
    check_label,
    check_name,
    quoted,
    read_table,
    shown,
    unknown_label,
)
from inti_jax.data.builders.tree import Tree
from inti_jax.errors import UserError

_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
# Split by the name that a file or a row gives it. `test` is not used, because not every version published its
# labels.
_SPLITS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
}
_SNIFFED = 1000  # characters to read of a file's first line, to check for Kinetics' header


def read(tree: Tree) -> Annotations:
    """Read all CSV files with columns label, youtube_id, time_start, time_end and, optionally, split.

    The split comes from that column, or else from the file's name. Labels are sorted, which is the official
    order. A clip's file is `<youtube_id>_<time_start>_<time_end>`, times with six digits, or else
    `<youtube_id>`.

    Raises UserError, naming file and row.
    """
    splits: dict[str, list[Listed]] = {}
    files: dict[str, Path] = {}
    for path in tree.texts(r".*\.(csv|txt)"):
        if not set(_COLUMNS[:2]) <= set(_header(path)):
            continue
        for split, listed in _rows(path):
            if files.setdefault(split, path) != path:
                raise UserError(f"both {files[split]} and {path} list `{split}`: remove one of them")
            splits.setdefault(split, []).append(listed)
    if not splits:
        raise UserError(
            f"{tree.root} has no annotations with clips of train or val: put a CSV file with the columns "
            f"{', '.join(_COLUMNS)} there, or up to two folders below"
        )
    # Order the splits independently of the files' names.
    splits = {split: splits[split] for split in SPLITS if split in splits}
    first = next(iter(splits))
    labels = tuple(sorted({listed.label for listed in splits[first]}))
    known = set(labels)
    for listed in splits.get("val", []):
        if listed.label not in known:
            unknown_label(listed.label, labels, listed.where, files[first])
    return Annotations(labels, splits)


def _header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            cells = next(csv.reader([file.readline(_SNIFFED)]), [])
    except (OSError, csv.Error):
        return []
    return [cell.strip().lower() for cell in cells]


def _rows(path: Path) -> Iterator[tuple[str, Listed]]:
    named = _split_of_name(path.stem)
    for row, cells in read_table(path, _COLUMNS):
        where = f"{path} row {row}"
        if "split" in cells:
            split = _SPLITS.get(cells["split"].lower())
            if split is None:
                raise UserError(
                    f"{where}: unknown split {shown(cells['split'])}; splits are {quoted(_SPLITS)}"
                )
        elif named is None:
            raise UserError(
                f"{path} has no column `split`, and its name states no split: name it train.csv or val.csv"
            )
        else:
            split = named
        if split not in SPLITS:
            continue
        check_label(cells["label"], where)
        video = check_name(cells["youtube_id"], "youtube_id", where)
        clip = f"{video}_{_seconds(cells, 'time_start', where):06d}_{_seconds(cells, 'time_end', where):06d}"
        yield split, Listed(clip, cells["label"], path, row, (clip, video), folder=cells["label"])


def _split_of_name(stem: str) -> str | None:
    words = re.split(r"[^a-z]+", stem.lower())
    named = {_SPLITS[word] for word in words if word in _SPLITS}
    return named.pop() if len(named) == 1 else None


def _seconds(cells: dict[str, str], column: str, where: str) -> int:
    # Programs that keep numbers as floats write "12.0".
    match = re.fullmatch(r"(\d{1,6})(?:\.0*)?", cells[column], re.ASCII)
    if match is None:
        raise UserError(f"{where}: {column} {shown(cells[column])} is not a whole number of seconds")
    return int(match[1])
