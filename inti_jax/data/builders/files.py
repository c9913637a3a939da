"""Users' files: which of them are videos, and which folders are frames of one."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from inti_jax.data.builders import frames
from inti_jax.data.builders.annotations import Absent
from inti_jax.data.builders.frames import Frames, Series
from inti_jax.data.builders.names import printable
from inti_jax.data.builders.walk import read_directory
from inti_jax.data.codec import decode

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp", ".ts")
)
_STILL_SUFFIXES = frozenset((".jpg", ".jpeg", ".bmp", ".tif", ".tiff"))


class Found(NamedTuple):
    """A file or frame folder of the source. `split` is None where the source does not say.

    `source` is where the video is, or why there is none; `bytes` is the size on disk.
    """

    id: str
    label: str
    split: str | None
    source: Path | Frames | Absent
    bytes: int


def exists(path: Path) -> bool:
    """Say that a file or folder is there and can be reached."""
    try:
        return path.is_file() or path.is_dir()
    except OSError:  # a folder on the way that may not be entered
        return False


def is_video_name(name: str) -> bool:
    """Say that a file is a video by its name."""
    return PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES


def source_of(path: Path) -> Path | Absent:
    """Tell a video by its name, and where that does not say, by whether it opens as one.

    A file that is called like a video is one until it is decoded.
    """
    if is_video_name(path.name):
        return path
    if path.suffix.lower() in _STILL_SUFFIXES:
        return Absent("it is a still image: the frames of a video go in a folder of their own")
    try:
        with path.open("rb") as file:
            decode.check_opens(file)
    except decode.DecodeError as error:
        return Absent(f"it is no video: {error}")
    except OSError as error:
        return Absent(f"it cannot be read: {error.strerror}")
    return path


def frames_among(names: Sequence[str]) -> Series | None:
    """Find the frames in a folder of these files; None where it has no numbered images, or videos."""
    return None if any(map(is_video_name, names)) else frames.find_series(names)


def frames_of(
    folder: Path, series: Series, rate: Fraction, limit: int | None = None
) -> tuple[Frames | Absent, int]:
    """Give a frame folder as a source, with the size of its frames in bytes, or why it cannot be one."""
    if series.fault:
        return Absent(series.fault), 0
    try:
        return Frames(folder, rate, limit), frames.size(folder, series)
    except OSError as error:
        return Absent(f"its frames cannot be read: {error.strerror}"), 0


def folder_of(folder: Path, rate: Fraction, limit: int | None = None) -> tuple[Frames | Absent, int] | None:
    """Give the frame folder at a path that is listed, as `frames_of`; None where there are no frames."""
    try:
        names = read_directory(folder).files
    except OSError as error:
        return Absent(f"the folder cannot be read: {error.strerror}"), 0
    series = frames_among(names)
    return None if series is None else frames_of(folder, series, rate, limit)


def relative_id(path: Path, source: Path) -> str:
    """Write a file's path below `source` as its id."""
    return printable(path.relative_to(source).as_posix())
