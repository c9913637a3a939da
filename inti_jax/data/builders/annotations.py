"""Read and check annotation files, and define the rows and labels that their readers return."""

import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from inti_jax.errors import UserError

SPLITS = ("train", "val")

_NAME = re.compile(r"[A-Za-z0-9_-]{1,200}")
_DIGITS = re.compile(r"\d{1,9}", re.ASCII)
_NUMBERED = re.compile(r"(\d{1,9})[\s,;:]+\S", re.ASCII)
_NUMBER_AND_MARK = re.compile(r"(\d{1,9})\s*[,;:\t]\s*\S", re.ASCII)
_MANY = 20  # labels; see `read_labels`
_SHOWN = 80  # characters


class Listed(NamedTuple):
    """A video as a row of an annotation file lists it, not yet located on disk.

    Its file has one of the names `stems`, without a suffix, the most reliable first; or it is at `path`,
    relative to the source. `folder` is the folder of its class, which decides between several files of the
    same name. `frames` is the number of frames that the row says to take from a frame folder.
    """

    id: str
    label: str
    file: Path
    row: int
    stems: tuple[str, ...] = ()
    path: str = ""
    folder: str = ""
    frames: int | None = None

    @property
    def where(self) -> str:
        """The row's place, for messages: file and row number."""
        return f"{self.file} row {self.row}"


class Annotations(NamedTuple):
    """The labels in official order, and the rows of each split that has annotations."""

    labels: tuple[str, ...]
    splits: dict[str, list[Listed]]


class Absent(NamedTuple):
    """The reason why a video has no file, in place of the file; the video is listed as rejected."""

    reason: str


def read_text(path: Path) -> str:
    """Read a UTF-8 text file; raise UserError if it cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8: save it as one") from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the stripped non-empty lines with their line numbers, from 1. Raises UserError."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line := line.strip():
            yield number, line


def read_labels(path: Path) -> tuple[str, ...]:
    """Read labels, one a line. Raises UserError for no label, a repeated one, or a number before each."""
    labels = [label for _, label in read_lines(path)]
    # In a short list, "1 finger" and "2 fingers" are labels, so there a number counts only with a mark behind
    # it. The first line may be a header.
    numbered = _NUMBERED if len(labels) > _MANY else _NUMBER_AND_MARK
    for lines in (labels, labels[1:]):
        numbers = [match and int(match[1]) for match in map(numbered.match, lines)]
        if len(lines) > 1 and numbers in (list(range(len(lines))), list(range(1, len(lines) + 1))):
            raise UserError(f"{path} has numbers before its labels, as in {shown(lines[0])}: remove them")
    return _unique(labels, path)


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV file with a header, by column, with their row numbers.

    Raises UserError, naming the row, if one of `columns` is missing or a row is not as long as the header.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    header: list[str] = []
    try:
        for row in reader:
            if not any(row):
                continue
            if not header:
                header = [cell.strip().lower() for cell in row]
                if absent := [column for column in columns if column not in header]:
                    raise UserError(f"{path} row {reader.line_num}: there is no column `{absent[0]}`")
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{path} row {reader.line_num}: {len(row)} columns instead of {len(header)}: "
                    f"{', '.join(header)}"
                )
            yield reader.line_num, dict(zip(header, (cell.strip() for cell in row), strict=True))
    except csv.Error as error:
        raise UserError(f"{path} row {reader.line_num}: it is not CSV: {error}") from None


def read_json(path: Path) -> Any:
    """Read a JSON file; raise UserError if it is not JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} row {error.lineno}: it is not JSON: {error.msg}") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, or thousands of brackets
        raise UserError(f"{path} is not JSON that can be read") from None


def read_entries(path: Path, keys: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSON list with their numbers, from 1. Raises UserError if one lacks `keys`."""
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(f"{path} should be a list of objects with {quoted(keys)}")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or any(key not in entry for key in keys):
            raise UserError(f"{path} row {number} of the list: it should be an object with {quoted(keys)}")
        yield number, entry


def in_order(numbered: Iterable[tuple[str, int]], first: int, path: Path) -> tuple[str, ...]:
    """Sort labels by number. Raises UserError unless the numbers are `first`, `first` + 1, ..., each once."""
    ordered = sorted(numbered, key=lambda pair: pair[1])
    for expected, (label, number) in enumerate(ordered, start=first):
        if number != expected:
            raise UserError(
                f"{path}: labels should be numbered from {first}, each once, but {shown(label)} has "
                f"{number} instead of {expected}"
            )
    labels = _unique([label for label, _ in ordered], path)
    for label in labels:
        check_label(label, str(path))
    return labels


def whole_number(value: Any) -> int | None:
    """Return the whole number that `value` is or, as up to nine digits, spells; None for anything else."""
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    return value if type(value) is int and value >= 0 else None


def check_label(label: str, where: str) -> None:
    """Raise UserError if a label is empty or has characters that cannot be printed."""
    if not label:
        raise UserError(f"{where}: the label is empty")
    if not label.isprintable():
        raise UserError(f"{where}: the label {shown(label)} has characters that cannot be printed")


def check_name(name: Any, what: str, where: str) -> str:
    """Return `name` as text if it can be a file name without a suffix. Raises UserError otherwise."""
    text = str(name) if isinstance(name, str | int) and not isinstance(name, bool) else ""
    if not _NAME.fullmatch(text):
        raise UserError(
            f"{where}: {what} {shown(name)} should have up to 200 characters, each a letter, a digit, - or _"
        )
    return text


def unknown_label(label: str, labels: Sequence[str], where: str, listed_in: object) -> NoReturn:
    """Raise UserError for a label that is not listed, with the nearest label that is."""
    near = difflib.get_close_matches(label[:_SHOWN], labels, n=1, cutoff=0)
    raise UserError(f"{where}: the label {shown(label)} is not in {listed_in}; did you mean `{near[0]}`?")


def check_known(label: str, labels: Sequence[str] | None, where: str) -> None:
    """Raise UserError if `labels`, those of --labels, are given and a label is not one of them."""
    if labels is None or label in labels:
        return
    if label.isdecimal():
        raise UserError(
            f"{where}: the label `{label}` is not in the labels file. Pass a list of paths and label "
            "numbers as --train_list or --val_list, and the videos' directory as --source"
        )
    unknown_label(label, labels, where, "the labels file")


def read_splits(
    files: Mapping[str, Path], read: Callable[[Path], Iterable[Listed]]
) -> dict[str, list[Listed]]:
    """Read the rows of each split's file. Raises UserError for a file that lists nothing."""
    splits = {split: list(read(path)) for split, path in files.items()}
    for split, listed in splits.items():
        if not listed:
            raise UserError(f"{files[split]} lists no video")
    return splits


def shown(value: Any) -> str:
    """Format a value from a file for a message, short and on one line."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = f"`{value}`" if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def quoted(names: Iterable[str]) -> str:
    """Join names with commas, each in backquotes."""
    return ", ".join(f"`{name}`" for name in names)


def _unique(labels: Sequence[str], path: Path) -> tuple[str, ...]:
    if not labels:
        raise UserError(f"{path} has no label: write one in each line")
    seen = set()
    for label in labels:
        if label in seen:
            raise UserError(f"{path} has the label {shown(label)} twice: remove one of them")
        seen.add(label)
    return tuple(labels)
