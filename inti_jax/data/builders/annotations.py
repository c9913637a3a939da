"""What the readers of annotation files give, and how they read files that may hold anything."""

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
_MANY = 20  # labels
_SHOWN = 80  # characters


class Listed(NamedTuple):
    """A video that a row of an annotation file lists, wherever it is.

    Its file has one of the names `stems`, without a suffix, the surest first; or it is at `path`, relative to
    the source. `folder` is its class's: it decides between several files of that name. `frames` is how many
    frames of a frame folder the row says to take.
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
        return f"{self.file} row {self.row}"


class Annotations(NamedTuple):
    """The labels in official order, and what each split lists. A split without annotations is left out."""

    labels: tuple[str, ...]
    splits: dict[str, list[Listed]]


class Absent(NamedTuple):
    """In the place of a video's file: why there is none. It is listed as rejected."""

    reason: str


def read_text(path: Path) -> str:
    """Raises UserError where it is no text in UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8: save it as one") from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, stripped, with their numbers from 1. Raises UserError."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line := line.strip():
            yield number, line


def read_labels(path: Path) -> tuple[str, ...]:
    """Read labels, one a line. Raises UserError where there is none, one twice, or each with its number."""
    labels = [label for _, label in read_lines(path)]
    # Of a few, "1 finger" and "2 fingers" are labels. There may be a header.
    numbered = _NUMBERED if len(labels) > _MANY else _NUMBER_AND_MARK
    for lines in (labels, labels[1:]):
        numbers = [match and int(match[1]) for match in map(numbered.match, lines)]
        if len(lines) > 1 and numbers in (list(range(len(lines))), list(range(1, len(lines) + 1))):
            raise UserError(f"{path} has numbers before its labels, as in {shown(lines[0])}: leave them out")
    return _unique(labels, path)


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a header, with their numbers. `columns` have to be there.

    Raises UserError, naming the row, for one that is not as long as the header.
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
                    f"{path} row {reader.line_num}: {len(row)} columns where {len(header)} should be: "
                    f"{', '.join(header)}"
                )
            yield reader.line_num, dict(zip(header, (cell.strip() for cell in row), strict=True))
    except csv.Error as error:
        raise UserError(f"{path} row {reader.line_num}: it is not CSV: {error}") from None


def read_json(path: Path) -> Any:
    """Raises UserError where it is not JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} row {error.lineno}: it is not JSON: {error.msg}") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, or thousands of brackets
        raise UserError(f"{path} is not JSON that can be read") from None


def read_entries(path: Path, keys: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON list, with their numbers from 1. Raises UserError where one lacks `keys`."""
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(f"{path} should be a list of objects with {quoted(keys)}")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or any(key not in entry for key in keys):
            raise UserError(f"{path} row {number} of the list: it should be an object with {quoted(keys)}")
        yield number, entry


def in_order(numbered: Iterable[tuple[str, int]], first: int, path: Path) -> tuple[str, ...]:
    """The labels by their numbers, which have to be `first` and so on, each once. Raises UserError."""
    ordered = sorted(numbered, key=lambda pair: pair[1])
    for expected, (label, number) in enumerate(ordered, start=first):
        if number != expected:
            raise UserError(
                f"{path}: labels should be numbered from {first}, each once, but {shown(label)} has {number} "
                f"where {expected} should come"
            )
    labels = _unique([label for label, _ in ordered], path)
    for label in labels:
        check_label(label, str(path))
    return labels


def whole_number(value: Any) -> int | None:
    """Of an int, or of up to nine digits."""
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    return value if type(value) is int and value >= 0 else None


def check_label(label: str, where: str) -> None:
    """Raises UserError where it is empty, or has characters that are not to be seen."""
    if not label:
        raise UserError(f"{where}: the label is empty")
    if not label.isprintable():
        raise UserError(f"{where}: the label {shown(label)} has characters that cannot be printed")


def check_name(name: Any, what: str, where: str) -> str:
    """`name` as text, if it can be the name of a file without its suffix. Raises UserError."""
    text = str(name) if isinstance(name, str | int) and not isinstance(name, bool) else ""
    if not _NAME.fullmatch(text):
        raise UserError(f"{where}: {what} {shown(name)} should be of letters, digits, - and _, up to 200")
    return text


def unknown_label(label: str, labels: Sequence[str], where: str, listed_in: object) -> NoReturn:
    """Raises UserError with the nearest label there is."""
    near = difflib.get_close_matches(label[:_SHOWN], labels, n=1, cutoff=0)
    raise UserError(
        f"{where}: the label {shown(label)} is not in {listed_in}; the nearest there is `{near[0]}`"
    )


def check_known(label: str, labels: Sequence[str] | None, where: str) -> None:
    """Raise UserError where a label is not one of `labels`, those of --labels, if there are any."""
    if labels is None or label in labels:
        return
    if label.isdecimal():
        raise UserError(
            f"{where}: the label `{label}` is not in the labels file. A list of paths and numbers of labels "
            "is given as --train_list or --val_list, and the videos' directory as --source"
        )
    unknown_label(label, labels, where, "the labels file")


def read_splits(
    files: Mapping[str, Path], read: Callable[[Path], Iterable[Listed]]
) -> dict[str, list[Listed]]:
    """What each split's file lists. Raises UserError for a file that lists nothing."""
    splits = {split: list(read(path)) for split, path in files.items()}
    for split, listed in splits.items():
        if not listed:
            raise UserError(f"{files[split]} lists no video")
    return splits


def shown(value: Any) -> str:
    """What a file has there, short and on one line."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = f"`{value}`" if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _unique(labels: Sequence[str], path: Path) -> tuple[str, ...]:
    if not labels:
        raise UserError(f"{path} has no label")
    seen = set()
    for label in labels:
        if label in seen:
            raise UserError(f"{path} has the label {shown(label)} twice")
        seen.add(label)
    return tuple(labels)
