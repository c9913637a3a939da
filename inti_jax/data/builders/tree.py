"""Index the files below a source in one pass: videos and frame folders by name, and annotation files."""

import os
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path, PurePosixPath

from inti_jax.data.builders.annotations import Listed
from inti_jax.data.builders.files import exists, frames_among, is_video_name
from inti_jax.data.builders.walk import Skipped, walk
from inti_jax.errors import UserError

_TEXT_SUFFIXES = (".csv", ".txt", ".json")
_TEXT_DEPTH = 2  # most folders between the source and its annotations
_SPLIT_FOLDER = re.compile(r"(?:.*[_-])?(train|val|valid|validate|validation|test)(?:[_-]?\d+\w*)?")
_REPLACEMENT = "replacement"  # Kinetics-400's intact copies of videos that were first published damaged


class Tree:
    """Index of the files below `root`, as `walk` finds them.

    Annotations may be in `root` or up to two folders down. Raises UserError if `root` is not a directory.
    """

    def __init__(self, root: Path):
        if not root.is_dir():
            raise UserError(
                f"{root} is not a directory: --source takes the directory of the videos and annotations"
            )
        self.root = root
        self.skipped: list[Skipped] = []  # places that could not be read
        self._videos: dict[str, list[str]] = {}
        self._frame_folders: dict[str, list[str]] = {}
        self._texts: list[Path] = []
        self._unreadable: dict[str, str] = {}  # reasons, by path below `root` and by name without suffix
        for directory, files, _, skipped in walk(root):
            relative = PurePosixPath(directory.relative_to(root).as_posix())
            for place in skipped:
                if not place.again:
                    self.skipped.append(place)
                    self._unreadable[place.path.stem] = place.reason
                    self._unreadable[place.path.relative_to(root).as_posix()] = place.reason
            for file in files:
                if is_video_name(file):
                    self._videos.setdefault(PurePosixPath(file).stem, []).append(str(relative / file))
                elif file.lower().endswith(_TEXT_SUFFIXES) and len(relative.parts) <= _TEXT_DEPTH:
                    self._texts.append(directory / file)
            if frames_among(files):
                self._frame_folders.setdefault(relative.name, []).append(str(relative))

    def texts(self, pattern: str) -> list[Path]:
        """Return the possible annotation files whose whole name matches `pattern`."""
        return [path for path in self._texts if re.fullmatch(pattern, path.name)]

    def text(self, name: str, pattern: str | None = None) -> Path:
        """Return the one file called `name`, or the one whose whole name matches `pattern`, if given.

        Raises UserError if there is none, or more than one.
        """
        return self.lists({"": (name, pattern)})[""]

    def lists(self, names: Mapping[str, tuple[str, str | None]]) -> dict[str, Path]:
        """Return the annotation file of each split that has one, by its name or pattern as in `text`.

        Raises UserError if a split has more than one file, or if no split has any.
        """
        files = {}
        for split, (name, pattern) in names.items():
            found = self.texts(pattern or re.escape(name))
            if len(found) > 1:
                raise UserError(f"both {found[0]} and {found[1]} may be {name}: remove one of them")
            if found:
                files[split] = found[0]
        if not files:
            wanted = " or ".join(name for name, _ in names.values())
            raise UserError(f"{wanted} is not in {self.root} or up to {_TEXT_DEPTH} folders below")
        return files

    def find(
        self, listed: Listed, split: str, *, shared: Set[str], repeated: Set[tuple[str, str]]
    ) -> Path | None:
        """Find the file or frame folder of a listed video; None if it is not on disk.

        Only the first of the video's names is certainly its own. The others are fallbacks. A fallback in
        `repeated`, with the split, stands for several videos of that split, so it is not used. A fallback in
        `shared` stands for videos of both splits, so a folder above the file has to be named after this
        split. No fallback matches a file in a folder named after another split.

        Raises UserError if several files, or several frame folders, match.
        """
        if listed.path:
            path = self.root / listed.path
            return path if exists(path) else None
        for number, stem in enumerate(listed.stems):
            found = self._videos.get(stem) or self._frame_folders.get(stem, [])
            if number > 0:
                if (split, stem) in repeated:
                    continue
                wanted = (split,) if stem in shared else (split, None)
                found = [path for path in found if _split_of(path) in wanted]
            if found:
                return self.root / self._choose(found, listed, split)
        return None

    def why_missing(self, listed: Listed) -> str:
        """Return the reason why a listed video was not found."""
        above = [parent.as_posix() for parent in PurePosixPath(listed.path).parents] if listed.path else []
        for name in (listed.path, *listed.stems, *above):
            if name in self._unreadable:
                return f"not on disk: {self._unreadable[name]}"
        return "not on disk"

    def _choose(self, found: Sequence[str], listed: Listed, split: str) -> str:
        preferences = (
            lambda path: any(folder.startswith(_REPLACEMENT) for folder in PurePosixPath(path).parts[:-1]),
            lambda path: listed.folder in PurePosixPath(path).parts[:-1],
            lambda path: _split_of(path) in (split, None),
        )
        for preferred in preferences:
            found = [path for path in found if preferred(path)] or found
        # Several paths may lead to one file: some sources have a tree of links by class beside the files.
        if len({os.path.realpath(self.root / path) for path in found}) > 1:
            raise UserError(
                f"{listed.where}: both {self.root / found[0]} and {self.root / found[1]} may be its video: "
                "hide one, for example by renaming its folder to start with a dot"
            )
        return found[0]


def _split_of(path: str) -> str | None:
    """Return the split that a folder above a file is named after, or None."""
    for part in PurePosixPath(path).parts[:-1]:
        if match := _SPLIT_FOLDER.fullmatch(part.lower()):
            return match[1] if match[1] in ("train", "test") else "val"
    return None
