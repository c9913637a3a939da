"""Tell which of a user's files are videos, which folders hold the frames of one, and read files."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from inti_jax.data.builders import frames
from inti_jax.data.builders.annotations import Absent
from inti_jax.data.builders.frames import Frames, Series
from inti_jax.data.builders.walk import read_directory
from inti_jax.data.codec import decode
from inti_jax.host.names import printable

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp", ".ts")
)
_STILL_SUFFIXES = frozenset((".jpg", ".jpeg", ".bmp", ".tif", ".tiff"))


class Found(NamedTuple):
    """A file or frame folder of the source. `split` is None if the source does not say.

    `source` is the place of the video, or the reason why there is none. `bytes` is the size on disk.
    """

    id: str
    label: str
    split: str | None
    source: Path | Frames | Absent
    bytes: int


def read_file(path: Path) -> bytes:
    """Read a file's content. Raises DecodeError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise decode.DecodeError(f"it cannot be read: {error.strerror}") from None


def exists(path: Path) -> bool:
    """Return True if a file or folder exists and can be reached."""
    try:
        return path.is_file() or path.is_dir()
    except OSError:  # a parent folder without permission to enter
        return False


def is_video_name(name: str) -> bool:
    """Return True if a file name has the suffix of a video."""
    return PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES


def source_of(path: Path) -> Path | Absent:
    """Return the path if it is a video, by its name or else by opening it; otherwise the reason why not.

    A file with a video's suffix is not opened here: it counts as a video until it is decoded.
    """
    if is_video_name(path.name):
        return path
    if path.suffix.lower() in _STILL_SUFFIXES:
        return Absent("it is a still image: put the frames of a video in a folder of their own")
    try:
        with path.open("rb") as file:
            decode.check_opens(file)
    except decode.DecodeError as error:
        return Absent(f"it is not a video: {error}")
    except OSError as error:
        return Absent(f"it cannot be read: {error.strerror}")
    return path


def frames_among(names: Sequence[str]) -> Series | None:
    """Find the frames among a folder's files; None if it has no numbered images, or if it has videos."""
    return None if any(map(is_video_name, names)) else frames.find_series(names)


def frames_of(
    folder: Path, series: Series, rate: Fraction, limit: int | None = None
) -> tuple[Frames | Absent, int]:
    """Return a frame folder as a source with its frames' bytes, or the reason why it cannot be one."""
    if series.fault:
        return Absent(series.fault), 0
    try:
        return Frames(folder, rate, limit), frames.size(folder, series)
    except OSError as error:
        return Absent(f"its frames cannot be read: {error.strerror}"), 0


def folder_of(folder: Path, rate: Fraction, limit: int | None = None) -> tuple[Frames | Absent, int] | None:
    """Return the frame folder at a listed path, as `frames_of` does; None if it has no frames."""
    try:
        names = read_directory(folder).files
    except OSError as error:
        return Absent(f"the folder cannot be read: {error.strerror}"), 0
    series = frames_among(names)
    return None if series is None else frames_of(folder, series, rate, limit)


def relative_id(path: Path, source: Path) -> str:
    """Return a file's id: its path relative to `source`, in printable form."""
    return printable(path.relative_to(source).as_posix())
