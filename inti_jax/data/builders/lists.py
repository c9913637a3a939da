"""Read lists of videos: each line has a path, optionally a number of frames, and the number of a label."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from inti_jax.data.builders.annotations import Annotations, Listed, read_lines, read_splits, shown
from inti_jax.data.builders.files import exists, is_video_name
from inti_jax.errors import UserError
from inti_jax.host.names import printable

_LINE = re.compile(r"(?P<path>.*[^\s,])[\s,]+(?P<number>\d+)", re.ASCII)
_FRAMES = re.compile(r"(?P<path>.*[^\s,])[\s,]+(?P<count>\d{1,9})", re.ASCII)


def read(files: Mapping[str, Path], labels: Sequence[str], root: Path) -> Annotations:
    """Read the list of each split: lines of `path label`, or `path frames label` for frame folders.

    Paths are relative to `root`, or absolute and below it. Labels count from 0. Spaces or commas separate
    path and numbers, and a path may have spaces. Of two numbers at the end of a line the first is the number
    of frames, unless the path with that number ends in a video's suffix or exists on disk.

    Raises UserError, naming file and row.
    """

    def rows(path: Path) -> Iterator[Listed]:
        for row, line in read_lines(path):
            where = f"{path} row {row}"
            match = _LINE.fullmatch(line)
            if match is None:
                hint = "; pass a CSV file with label names to `folder` as --source" if "," in line else ""
                if "path" in line.lower() and not any(map(str.isdigit, line)):
                    hint = f": delete the header{hint}"
                raise UserError(f"{where}: {shown(line)} should be a path and a label number{hint}")
            number = int(match["number"][:9])  # a longer number is too large in any case
            if number >= len(labels):
                raise UserError(
                    f"{where}: the label {number} is not one of 0 to {len(labels) - 1}, the lines of --labels"
                )
            relative, count = _below(match["path"], root, where), None
            frames = _FRAMES.fullmatch(match["path"])
            if frames and not is_video_name(match["path"]) and not exists(root / relative):
                relative, count = _below(frames["path"], root, where), int(frames["count"])
            yield Listed(printable(relative), labels[number], path, row, path=relative, frames=count)

    return Annotations(tuple(labels), read_splits(files, rows))


def _below(path: str, root: Path, where: str) -> str:
    top = os.path.normpath(root.absolute())
    absolute = Path(os.path.normpath(Path(top, path)))
    if not absolute.is_relative_to(top) or absolute == Path(top):
        raise UserError(f"{where}: {shown(path)} is not below {root}, which --source names")
    return absolute.relative_to(top).as_posix()
