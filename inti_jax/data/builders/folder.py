"""Build `folder` datasets: a user's own videos, from class folders or a CSV file of paths and labels."""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from inti_jax.data.builders import frames
from inti_jax.data.builders.annotations import SPLITS, Absent, read_labels
from inti_jax.data.builders.base import Clip, VideoBuilder
from inti_jax.data.builders.class_folders import scan_directory
from inti_jax.data.builders.files import is_video_name, read_file
from inti_jax.data.builders.frames import Frames
from inti_jax.data.builders.locate import Located
from inti_jax.data.builders.splits import assign
from inti_jax.data.builders.table import scan_table
from inti_jax.data.codec.decode import DecodeError
from inti_jax.data.manifest import SEPARATOR, Rejected
from inti_jax.errors import UsageError, UserError

_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Folder(VideoBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builder of the dataset `name` from files, those that `scan` finds or a published dataset's."""

    def __init__(
        self,
        *,
        data_dir: str | Path,
        name: str,
        labels: Sequence[str],
        splits: Mapping[str, Sequence[Clip]],
        rejected: Mapping[str, Sequence[Rejected]] | None = None,
        sampling: str = "",
        multi_label: bool = False,
    ):
        self.name = name
        self.sampling = sampling
        self.multi_label = multi_label
        super().__init__(data_dir=data_dir, labels=labels, splits=splits, rejected=rejected)

    def read(self, source: Path | Frames | Absent) -> bytes:
        """Read the video file, or encode the frame folder. Raises DecodeError if there is no video."""
        if isinstance(source, Absent):
            raise DecodeError(source.reason)
        if isinstance(source, Frames):
            return frames.read(source)
        return read_file(source)


def check_name(name: str) -> None:
    """Raise UsageError unless `name` can name a dataset."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--name {name!r} cannot name a dataset: use lower-case letters, digits and _, starting with a "
            "letter"
        )


def scan(
    source: Path,
    *,
    labels_file: Path | None = None,
    val_share: float = 0.2,
    rate: Fraction = frames.USUAL_RATE,
) -> Located:
    """Find the labels in order, and the videos of each split, that `source` describes; decode nothing.

    `source` is a CSV file, as `table.scan_table` reads it, or a directory: of class folders, or of `train`
    and `val` with class folders in each. If it names no splits, `splits.assign` gives `val_share` of each
    class to `val`. An id is the path relative to the source. Labels are sorted by name, or in the order of
    `labels_file`. Frame folders become videos of `rate` frames a second.

    Raises UserError, naming the place, for anything missing, unknown or repeated.
    """
    labels = read_labels(labels_file) if labels_file else None
    if source.is_dir():
        scanned = scan_directory(source, labels, rate)
    elif source.is_file() and is_video_name(source.name):
        raise UserError(f"{source} is one video: --source is a directory of class folders, or a CSV file")
    elif source.is_file():
        scanned = scan_table(source, labels, rate)
    else:
        raise UserError(f"{source} does not exist: --source is a directory of class folders, or a CSV file")
    splits: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    assigned = assign(scanned.found, val_share, scanned.multi_label)
    for file, split in zip(scanned.found, assigned, strict=True):
        splits[split].append(Clip(file.id, file.label, file.source, file.bytes))
    for split, clips in splits.items():
        rejected = scanned.rejected.get(split, ())
        if all(isinstance(clip.source, Absent) for clip in clips) and (clips or rejected):
            raise UserError(f"{source} has no video of `{split}`: {_first(clips, rejected)}")
    labels = labels or tuple(sorted(scanned.labels))
    if scanned.multi_label and (uncut := [label for label in labels if SEPARATOR in label]):
        raise UserError(
            f"{labels_file}: the label `{uncut[0]}` has a `{SEPARATOR}`, which separates labels in {source}"
        )
    stripped = {label.strip(): label for label in labels}
    if alike := [label for label in labels if stripped[label.strip()] != label]:
        other = stripped[alike[0].strip()]
        raise UserError(f"{source}: the labels {alike[0]!r} and {other!r} differ only in spaces: rename one")
    return Located(labels, splits, dict(scanned.rejected), tuple(scanned.notes), scanned.multi_label)


def _first(clips: Sequence[Clip], rejected: Sequence[Rejected]) -> str:
    """Describe the first file that is left out, with the reason."""
    reasons = [(clip.id, clip.source.reason) for clip in clips]
    reasons += [(entry.source, entry.reason) for entry in rejected]
    return "the first of {} rejected, {}: {}".format(len(reasons), *reasons[0])
