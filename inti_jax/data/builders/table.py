"""Read the sources of `folder` that are CSV files of paths, labels and, optionally, splits."""

import csv
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from inti_jax.data.builders.annotations import Absent, check_known, quoted, read_text, shown
from inti_jax.data.builders.class_folders import Scanned
from inti_jax.data.builders.files import Found, folder_of, source_of
from inti_jax.data.builders.frames import Frames
from inti_jax.data.builders.splits import split_named
from inti_jax.data.manifest import SEPARATOR, Rejected
from inti_jax.errors import UserError
from inti_jax.host.names import printable

_COLUMNS = ("path", "label", "labels", "split")
# Names of a pandas index as a column: empty as pandas writes it, `Unnamed: 0` once pandas has read it back.
_INDEX = re.compile(r"|unnamed: \d+")
_LIST_LINE = re.compile(r"\S.*\s\d+")

_Row = tuple[int, list[str]]  # row number and cells


def scan_table(source: Path, labels: Sequence[str] | None, rate: Fraction) -> Scanned:
    """Read a file with the columns path, label and, optionally, split.

    A file with path and label alone may leave out the header. A column `labels` in place of `label` has one
    label or more for each video, separated by semicolons. Columns are separated by commas, or by
    semicolons or tabs if the first line has no comma. Paths are relative to the file's directory. An unnamed
    column, a data frame's index, is ignored. Raises UserError, naming the row, for anything missing, unknown
    or repeated.
    """
    columns, rows = _read(source)
    multi_label = "labels" in columns
    scanned = Scanned(set(), [], defaultdict(list), [], multi_label)
    seen: dict[str, int] = {}
    for number, row in rows:
        where = f"{source} row {number}"
        if len(row) != len(columns):
            raise UserError(
                f"{where}: {len(row)} columns instead of {len(columns)}: "
                f"{', '.join(column or 'an index' for column in columns)}{_hint(row)}"
            )
        cells = dict(zip(columns, row, strict=True))
        video, size = _source(source.parent / cells["path"], where, rate)
        own = _labels(cells["labels"]) if multi_label else [cells["label"]]
        if not all(own):
            raise UserError(f"{where}: {'a' if len(own) > 1 else 'the'} label is empty")
        for label in own:
            if own.count(label) > 1:
                raise UserError(f"{where}: the label `{label}` is given twice")
            check_known(label, labels, where)
        split = split_named(cells["split"]) if "split" in cells else None
        if "split" in cells and split is None:
            raise UserError(f"{where}: unknown split `{cells['split']}`; splits are `train` and `val`")
        video_id = printable(Path(os.path.normpath(cells["path"])).as_posix())
        if video_id in seen:
            raise UserError(f"{where}: {video_id} is already in row {seen[video_id]}")
        seen[video_id] = number
        scanned.labels.update(own)
        scanned.found.append(Found(video_id, SEPARATOR.join(own), split, video, size))
    if not scanned.found:
        raise UserError(f"{source} has a header and no rows")
    return _without_test(scanned)


def _read(source: Path) -> tuple[list[str], list[_Row]]:
    """Read the column names, in lower case, and the rows below the header, if there is one."""
    lines = read_text(source).splitlines()
    first = next((line for line in lines if line.strip()), "")
    # Spreadsheets separate columns by semicolons in locales with a decimal comma.
    delimiter = next((mark for mark in ",;\t" if mark in first), ",")
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except csv.Error as error:
        raise UserError(f"{source} row {reader.line_num}: it is not CSV: {error}") from None
    if not rows:
        raise UserError(f"{source} is empty: write a path and a label in each row")
    columns = ["" if _INDEX.fullmatch(cell.lower()) else cell.lower() for cell in rows[0][1]]
    if "path" not in columns or not {"label", "labels"} & set(columns):
        return ["path", "label"], rows
    if {"label", "labels"} <= set(columns):
        raise UserError(f"{source} row 1: it has both `label` and `labels` as columns: keep one of them")
    if unknown := sorted(set(columns) - {*_COLUMNS, ""}):
        raise UserError(f"{source} row 1: unknown column `{unknown[0]}`; columns are {quoted(_COLUMNS)}")
    if repeated := [column for column in _COLUMNS if columns.count(column) > 1]:
        raise UserError(f"{source} row 1: the column `{repeated[0]}` is given twice")
    return columns, rows[1:]


def _labels(cell: str) -> list[str]:
    return [label.strip() for label in cell.split(SEPARATOR)]


def _source(path: Path, where: str, rate: Fraction) -> tuple[Path | Frames | Absent, int]:
    if path.is_file():
        return source_of(path), path.stat().st_size
    if not path.is_dir():
        hint = (
            "; a header, if row 1 is one, has the columns `path` and `label`"
            if where.endswith(" row 1")
            else ""
        )
        raise UserError(f"{where}: there is no file {path}{hint}")
    if found := folder_of(path, rate):
        return found
    raise UserError(f"{where}: {path} is a folder without numbered images")


def _hint(row: Sequence[str]) -> str:
    """Suggest how to pass a row of the wrong length that looks like another format; empty if it does not."""
    if len(row) == 1 and _LIST_LINE.fullmatch(row[0]):
        return (
            f". {shown(row[0])} is a line of a list of paths and label numbers: pass the file as "
            "--train_list or --val_list, the labels as --labels and the videos' directory as --source"
        )
    if len(row) == 3 and row[0].isdecimal():
        return ". The first is pandas' index: write the file with its header, or with index=False"
    return ""


def _without_test(scanned: Scanned) -> Scanned:
    """Reject the rows of `test` if there are rows of `val`; otherwise take them as `val`."""
    splits = {file.split for file in scanned.found}
    if "test" not in splits:
        return scanned
    if "val" not in splits:
        found = [file._replace(split="val") if file.split == "test" else file for file in scanned.found]
        return scanned._replace(found=found, notes=[*scanned.notes, "`test` is used as `val`"])
    found = [file for file in scanned.found if file.split != "test"]
    reason = "it belongs to `test`, which is not used"
    scanned.rejected["val"] += [Rejected(file.id, reason) for file in scanned.found if file.split == "test"]
    count = len(scanned.found) - len(found)
    rows = "1 row of `test` is" if count == 1 else f"{count} rows of `test` are"
    note = f"{rows} not used: splits are `train` and `val`"
    return scanned._replace(found=found, notes=[*scanned.notes, note])
