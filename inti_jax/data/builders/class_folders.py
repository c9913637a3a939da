"""Scan a directory of class folders for videos and frame folders, and list the rest with reasons."""

import collections
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from inti_jax.data.builders.annotations import SPLITS, check_known, quoted
from inti_jax.data.builders.files import (
    Found,
    frames_among,
    frames_of,
    is_video_name,
    relative_id,
    source_of,
)
from inti_jax.data.builders.frames import is_image
from inti_jax.data.builders.splits import split_named
from inti_jax.data.builders.walk import Directory, read_directory, walk
from inti_jax.data.manifest import Rejected
from inti_jax.errors import UserError
from inti_jax.host.names import printable


class Scanned(NamedTuple):
    """Contents of a source: labels, unsorted, files, rejected files by split, and notes for the user.

    With `multi_label`, a file's `label` is several labels, see `manifest.labels_in`.
    """

    labels: set[str]
    found: list[Found]
    rejected: dict[str, list[Rejected]]
    notes: list[str]
    multi_label: bool = False


def scan_directory(source: Path, labels: Sequence[str] | None, rate: Fraction) -> Scanned:
    """Find the videos of each class below `source`, and of each split if its folders are splits.

    Raises UserError if there are no class folders, or if the label of one is not in `labels`.
    """
    top = read_directory(source)
    scanned = Scanned(set(), [], collections.defaultdict(list), [])
    scanned.rejected["train"] += _left_out(top, source)
    for split, folder in _split_folders(top, scanned):
        directory = top if split is None else read_directory(folder)
        if split is not None:
            scanned.rejected[split] += _left_out(directory, source)
        if not directory.folders:
            raise UserError(
                f"{folder} contains no folders: put the videos of each class in a folder named after the "
                "class"
            )
        for class_folder in directory.folders:
            if source.resolve().is_relative_to(class_folder.resolve()):
                reason = "a link to a folder that contains it"
                scanned.rejected[split or "train"].append(Rejected(relative_id(class_folder, source), reason))
                continue
            label = printable(class_folder.name)
            check_known(label, labels, str(class_folder))
            scanned.labels.add(label)
            found, rejected = _scan_class(class_folder, source, label, split, rate)
            scanned.found.extend(found)
            scanned.rejected[split or "train"] += rejected
    scanned.notes.extend(_splits_inside(scanned.found))
    return scanned


def _split_folders(top: Directory, scanned: Scanned) -> list[tuple[str | None, Path]]:
    """Choose the folders of `train` and `val`, or the source itself, without a split."""
    source = top.path
    if not top.folders:
        raise UserError(
            f"{source} contains no folders: put the videos of each class in a folder named after the class"
        )
    by_split: dict[str | None, list[Path]] = collections.defaultdict(list)
    for folder in top.folders:
        by_split[split_named(folder.name)].append(folder)
    others = by_split.pop(None, [])
    named = [folder.name for folder in top.folders if folder not in others]
    if others and set(SPLITS) <= set(by_split):
        raise UserError(
            f"{source} has {quoted(named)}; a source with split folders should have no other folder: "
            f"`{printable(others[0].name)}`"
        )
    if others:
        if named:
            beside = printable(others[0].name)
            scanned.notes.append(f"{quoted(named)} count as labels: `{beside}` beside them names no split")
        return [(None, source)]
    for split, folders in by_split.items():
        if len(folders) > 1:
            raise UserError(f"{source} has {quoted(named)}: two of them name the split `{split}`")
    if "train" not in by_split or len(by_split) < 2:
        reasons = [
            f"; {place.path.name}: {place.reason}" for place in top.skipped if split_named(place.path.name)
        ]
        raise UserError(
            f"{source} has {quoted(named)}: a source with splits needs two folders, `train` and "
            f"`val`{''.join(reasons)}"
        )
    (train,), (val, *_), tests = (
        by_split["train"],
        by_split.get("val") or by_split["test"],
        by_split.get("test"),
    )
    if tests and tests[0] is not val:
        scanned.notes.append(f"`{tests[0].name}` is not used: splits are `train` and `val`")
        reason = "it is neither `train` nor `val`: prepare it as a dataset of its own"
        scanned.rejected["val"].append(Rejected(relative_id(tests[0], source), reason))
    elif tests:
        scanned.notes.append(f"`{val.name}` is used as `val`")
    return [("train", train), ("val", val)]


def _splits_inside(found: Sequence[Found]) -> list[str]:
    """Note folders named after splits inside class folders, where they have no effect."""
    inside = {file.id.split("/")[1] for file in found if file.split is None and file.id.count("/") > 1}
    splits = {split_named(name) for name in inside}
    if "train" not in splits or splits.isdisjoint({"val", "test"}):
        return []
    names = quoted(sorted(name for name in inside if split_named(name)))
    return [
        f"class folders contain folders {names}, which are not used as splits: put the class folders inside "
        "`train` and `val`"
    ]


def _scan_class(
    class_folder: Path, source: Path, label: str, split: str | None, rate: Fraction
) -> tuple[list[Found], list[Rejected]]:
    """Find a class's videos and frame folders, sorted by path, and the files that are left out."""
    found: list[Found] = []
    rejected: list[Rejected] = []
    image_folders: list[tuple[Found, tuple[str, ...]]] = []
    videos: set[str] = set()  # without suffixes
    for path, files, _, skipped in walk(class_folder):
        rejected += [Rejected(relative_id(place.path, source), place.reason) for place in skipped]
        videos.update(PurePosixPath(name).stem for name in files if is_video_name(name))
        # The frames of a video have a folder of their own, so images in the class folder itself are none.
        if path != class_folder and (series := frames_among(files)):
            folder_id = relative_id(path, source)
            frames, size = frames_of(path, series, rate)
            stems = tuple(PurePosixPath(name).stem for name in (series.names[0], series.names[-1]))
            image_folders.append((Found(folder_id, label, split, frames, size), stems))
            if series.others:
                first = printable(series.others[0])
                reason = (
                    f"{len(series.others)} images do not belong to the numbered frames, for example {first}"
                )
                rejected.append(Rejected(folder_id, reason))
            files = [name for name in files if not is_image(name)]
        for name in files:
            file = path / name
            try:
                size = file.stat().st_size
            except OSError as error:
                rejected.append(Rejected(relative_id(file, source), f"it cannot be read: {error.strerror}"))
            else:
                found.append(Found(relative_id(file, source), label, split, source_of(file), size))
    for folder, stems in image_folders:
        if videos.isdisjoint(stems):
            found.append(folder)
        else:
            rejected.append(Rejected(folder.id, "its still images are named like the videos beside it"))
    return sorted(found, key=lambda file: file.id.split("/")), rejected


def _left_out(directory: Directory, source: Path) -> list[Rejected]:
    """List the unreadable entries and the videos that are beside class folders instead of in one."""
    rejected = [Rejected(relative_id(place.path, source), place.reason) for place in directory.skipped]
    videos = [directory.path / name for name in directory.files if is_video_name(name)]
    return rejected + [Rejected(relative_id(video, source), "it is in no class folder") for video in videos]
