"""folder: your own videos, from a directory with a folder per class or a CSV file of paths and labels."""

import csv
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from inti_jax.data.builders.annotations import (
    SPLITS,
    Absent,
    quoted,
    read_labels,
    read_text,
    unknown_label,
)
from inti_jax.data.builders.video import Clip, VideoBuilder
from inti_jax.data.dataset import read_file
from inti_jax.data.decode import DecodeError
from inti_jax.errors import UsageError, UserError

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_COLUMNS = ("path", "label", "split")


class Found(NamedTuple):
    """A file of the source; `split` is None where the source does not say."""

    id: str
    label: str
    split: str | None
    path: Path


class Folder(VideoBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builds the dataset `name` from files: those that `scan` found, or a published dataset's."""

    def __init__(
        self,
        *,
        data_dir: str | Path,
        name: str,
        labels: Sequence[str],
        splits: Mapping[str, Sequence[Clip]],
        sampling: str = "",
    ):
        self.name = name
        self.sampling = sampling
        super().__init__(data_dir=data_dir, labels=labels, splits=splits)

    def read(self, source: Path | Absent) -> bytes:
        if isinstance(source, Absent):
            raise DecodeError(source.reason)
        return read_file(source)


def check_name(name: str) -> None:
    """Raises UsageError unless `name` can name a dataset."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--name {name!r} cannot name a dataset: use lower-case letters, digits and _, a letter first"
        )


def scan(
    source: Path, *, labels_file: Path | None = None, val_share: float = 0.2
) -> tuple[tuple[str, ...], dict[str, list[Clip]]]:
    """The labels in order, and the videos of each split, that `source` describes; nothing is decoded.

    `source` is a CSV file with the columns path, label and perhaps split (the header may go, where there is
    no split), or a directory: of class folders, or of `train` and `val` with class folders in each. Where it
    names no splits, `val_share` of each class, by the hash of its ids, becomes `val`: at least one video and
    never all. An id is the path relative to the source. Labels are sorted by name, or as in `labels_file`.

    Raises UserError, naming the place, for whatever is missing, unknown or there twice.
    """
    labels = read_labels(labels_file) if labels_file else None
    if source.is_dir():
        found = _scan_directory(source, labels)
    elif source.is_file():
        found = _scan_csv(source, labels)
    else:
        raise UserError(f"{source} does not exist: --source is a directory of class folders, or a CSV file")
    labels = labels or tuple(sorted({file.label for file in found}))
    splits: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    for file, split in zip(found, _assign_splits(found, val_share), strict=True):
        splits[split].append(Clip(file.id, file.label, file.path, file.path.stat().st_size))
    return labels, splits


def _scan_directory(source: Path, labels: tuple[str, ...] | None) -> list[Found]:
    folders = _folders(source)
    names = [folder.name for folder in folders]
    if not folders:
        raise UserError(f"{source} has no folders: put the videos of each class in a folder of its name")
    if set(SPLITS) <= set(names):
        if others := sorted(set(names) - set(SPLITS)):
            raise UserError(
                f"{source} has `train` and `val`, and so should have no other folder: `{others[0]}`"
            )
        split_folders: list[tuple[str | None, Path]] = [(folder.name, folder) for folder in folders]
    elif set(names) <= {"train", "val", "test", "valid", "validation"}:
        raise UserError(f"{source} has {quoted(names)}: splits are two folders, `train` and `val`")
    else:
        split_folders = [(None, source)]

    found = []
    for split, folder in split_folders:
        class_folders = _folders(folder)
        if not class_folders:
            raise UserError(f"{folder} has no folders: put the videos of each class in a folder of its name")
        for class_folder in class_folders:
            _check_label(class_folder.name, labels, str(class_folder))
            files = list(_files(class_folder))
            if not files:
                raise UserError(f"{class_folder} has no files: remove the folder, or put its videos there")
            found += [
                Found(file.relative_to(source).as_posix(), class_folder.name, split, file) for file in files
            ]
    return found


def _scan_csv(source: Path, labels: tuple[str, ...] | None) -> list[Found]:
    reader = csv.reader(read_text(source).splitlines())
    rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    if not rows:
        raise UserError(f"{source} is empty: write a path and a label in each row")
    columns = [cell.lower() for cell in rows[0][1]]
    if {"path", "label"} <= set(columns):
        if unknown := sorted(set(columns) - set(_COLUMNS)):
            raise UserError(f"{source} row 1: unknown column `{unknown[0]}`; columns are {quoted(_COLUMNS)}")
        rows = rows[1:]
    else:
        columns = ["path", "label"]

    found: list[Found] = []
    seen: dict[str, int] = {}
    for number, row in rows:
        where = f"{source} row {number}"
        if len(row) != len(columns):
            raise UserError(
                f"{where}: {len(row)} columns where {len(columns)} should be: {', '.join(columns)}"
            )
        cells = dict(zip(columns, row, strict=True))
        path = source.parent / cells["path"]
        if not path.is_file():
            raise UserError(f"{where}: there is no file {path}")
        if not cells["label"]:
            raise UserError(f"{where}: the label is empty")
        _check_label(cells["label"], labels, where)
        split = cells.get("split")
        if split is not None and split not in SPLITS:
            raise UserError(f"{where}: unknown split `{split}`; splits are {quoted(SPLITS)}")
        video_id = Path(os.path.normpath(cells["path"])).as_posix()
        if video_id in seen:
            raise UserError(f"{where}: {video_id} is in row {seen[video_id]} already")
        seen[video_id] = number
        found.append(Found(video_id, cells["label"], split, path))
    if not found:
        raise UserError(f"{source} has a header and no rows")
    return found


def _assign_splits(found: Sequence[Found], val_share: float) -> list[str]:
    """The split of each file: what the source says, else by the rank of its id's hash in its class."""
    ranks: dict[str, list[str]] = {}
    for file in sorted(found, key=lambda file: hashlib.sha256(file.id.encode()).digest()):
        ranks.setdefault(file.label, []).append(file.id)
    val = set()
    for ids in ranks.values():
        count = round(len(ids) * val_share)
        if val_share > 0:
            count = max(1, min(count, len(ids) - 1)) if len(ids) > 1 else 0
        val.update(ids[:count])
    return [file.split or ("val" if file.id in val else "train") for file in found]


def _check_label(label: str, labels: tuple[str, ...] | None, where: str) -> None:
    if labels is None or label in labels:
        return
    unknown_label(label, labels, where, "the labels file")


def _folders(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(directory: Path) -> Iterator[Path]:
    """The files in `directory` and below, sorted; hidden ones are the system's, not the user's."""
    for path in sorted(directory.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)
        if path.is_file() and not hidden:
            yield path
