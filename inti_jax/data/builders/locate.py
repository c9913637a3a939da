"""Locate the videos that a dataset's annotations list."""

import collections
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from inti_jax.data.builders import lists
from inti_jax.data.builders.annotations import SPLITS, Absent, Annotations, Listed, read_labels
from inti_jax.data.builders.base import Clip
from inti_jax.data.builders.files import folder_of, relative_id
from inti_jax.data.builders.frames import USUAL_RATE, Frames
from inti_jax.data.builders.registry import OFFICIAL
from inti_jax.data.builders.tree import Tree
from inti_jax.data.manifest import Rejected
from inti_jax.errors import UserError


class Located(NamedTuple):
    """The labels in order, the videos of each split, and notes for the user about anything unusual.

    A listed video that is not on disk is a Clip whose source is `Absent`. `rejected` has, by split, other
    places that were left out, such as a folder that cannot be read. With `multi_label`, a clip's `label` is
    several labels, see `manifest.labels_in`.
    """

    labels: tuple[str, ...]
    splits: dict[str, list[Clip]]
    rejected: dict[str, list[Rejected]]
    notes: tuple[str, ...]
    multi_label: bool = False


def scan(
    name: str,
    source: Path,
    *,
    fold: int = 1,
    list_files: Mapping[str, Path] | None = None,
    labels_file: Path | None = None,
    rate: Fraction = USUAL_RATE,
) -> Located:
    """Find the videos below `source` that the annotations of dataset `name` list; decode nothing.

    A frame folder may take the place of a video, under the video's name without its suffix. It becomes a
    video of `rate` frames a second. `list_files`, by split, replace the dataset's own annotations; then
    `labels_file` has the labels.

    Raises UserError, naming file and row, for errors in the annotations, and for a split none of whose videos
    exist.
    """
    tree = Tree(source)
    if list_files is None:
        annotations = OFFICIAL[name].annotations(tree, fold)
    else:
        assert labels_file is not None
        annotations = lists.read(list_files, read_labels(labels_file), source)
    notes = [*_check_labels(name, annotations)]
    notes += [f"there are no annotations of `{split}`" for split in SPLITS if split not in annotations.splits]

    once = _check_ids(annotations)
    uses = collections.Counter(
        (split, stem)
        for split, listed in annotations.splits.items()
        for row in listed
        for stem in row.stems[1:]
    )
    repeated = {use for use, count in uses.items() if count > 1}
    shared = {stem for split, stem in uses if split == "train" and ("val", stem) in uses}
    splits: dict[str, list[Clip]] = {}
    for split, listed in annotations.splits.items():
        splits[split] = []
        missing = 0
        for row in listed:
            first = once[row.id]
            if row.row != first.row:
                other = f", where its label is `{first.label}`" if row.label != first.label else ""
                clip = Clip(row.id, row.label, Absent(f"{row.where} repeats row {first.row}{other}"), 0)
            elif path := tree.find(row, split, shared=shared, repeated=repeated):
                clip = Clip(row.id, row.label, *_source(path, row, rate))
            else:
                missing += 1
                clip = Clip(row.id, row.label, Absent(tree.why_missing(row)), 0)
            splits[split].append(clip)
        if all(isinstance(clip.source, Absent) for clip in splits[split]):
            expected = listed[0].path or f"{listed[0].stems[0]}.mp4"
            raise UserError(
                f"none of the {len(listed)} videos that {listed[0].file} lists is below {source}: the first "
                f"is expected at {expected}"
            )
        if missing:
            notes.append(f"{missing} of the {len(listed)} videos of `{split}` are not on disk")
    rejected: dict[str, list[Rejected]] = {}
    # The contents and the split of an unreadable folder are unknown. List it once, under the first split.
    if folders := [place for place in tree.skipped if place.folder]:
        rejected[next(iter(splits))] = [
            Rejected(relative_id(place.path, source), place.reason) for place in folders
        ]
        notes.append(f"{len(folders)} folders below {source} cannot be read, for example {folders[0].path}")
    return Located(annotations.labels, splits, rejected, tuple(notes))


def _source(path: Path, row: Listed, rate: Fraction) -> tuple[Path | Frames | Absent, int]:
    """Return the source of a listed video that exists, and its size in bytes."""
    if not path.is_dir():
        return path, path.stat().st_size
    return folder_of(path, rate, row.frames) or (Absent("a folder without numbered images"), 0)


def _check_labels(name: str, annotations: Annotations) -> Sequence[str]:
    """Return a note if there are fewer labels than the dataset has. Raises UserError if there are more."""
    if name not in OFFICIAL:
        return ()
    title, classes, count = OFFICIAL[name].title, OFFICIAL[name].classes, len(annotations.labels)
    if count > classes:
        rows = [row for listed in annotations.splits.values() for row in listed]
        uses = collections.Counter(row.label for row in rows)
        rarest = min(rows, key=lambda row: uses[row.label])
        raise UserError(
            f"{title} has {classes} labels, but {count} are listed: are they another dataset's, or is one "
            f"misspelt? The rarest is `{rarest.label}`, in {rarest.where}"
        )
    return (f"{title} has {classes} labels, but {count} are listed",) if count < classes else ()


def _check_ids(annotations: Annotations) -> dict[str, Listed]:
    """Return the first row of each video, by id. Raises UserError for a video in both splits."""
    split_of: dict[str, str] = {}
    first: dict[str, Listed] = {}
    for split, listed in annotations.splits.items():
        for row in listed:
            if split_of.setdefault(row.id, split) != split:
                raise UserError(
                    f"{row.where}: {row.id} is already in {first[row.id].where}, in another split: keep one"
                )
            first.setdefault(row.id, row)
    return first
