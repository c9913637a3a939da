"""Lists of files: in each line a path and the number of its label."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from inti_jax.data.builders.annotations import Annotations, Listed, read_lines, read_splits, shown
from inti_jax.errors import UserError

_LINE = re.compile(r"(?P<path>.*[^\s,])[\s,]+(?P<number>\d+)", re.ASCII)


def read(files: Mapping[str, Path], labels: Sequence[str], root: Path) -> Annotations:
    """The list of each split. Paths are relative to `root`, or absolute and below it; labels count from 0.

    Between path and number is space or a comma; a path may have spaces.

    Raises UserError, naming file and row.
    """

    def rows(path: Path) -> Iterator[Listed]:
        for row, line in read_lines(path):
            where = f"{path} row {row}"
            match = _LINE.fullmatch(line)
            if match is None:
                raise UserError(f"{where}: {shown(line)} should be a path and the number of its label")
            number = int(match["number"][:9])  # more is too large in any case
            if number >= len(labels):
                raise UserError(
                    f"{where}: the label {number} is not one of 0 to {len(labels) - 1}, the lines of --labels"
                )
            relative = _below(match["path"], root, where)
            yield Listed(relative, labels[number], path, row, path=relative)

    return Annotations(tuple(labels), read_splits(files, rows))


def _below(path: str, root: Path, where: str) -> str:
    top = os.path.normpath(root.absolute())
    absolute = Path(os.path.normpath(Path(top, path)))
    if not absolute.is_relative_to(top) or absolute == Path(top):
        raise UserError(f"{where}: {shown(path)} is not below {root}")
    return absolute.relative_to(top).as_posix()
