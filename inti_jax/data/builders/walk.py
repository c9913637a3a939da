"""Walk a source: every folder below it once, links followed, and what cannot be read with the reason."""

import collections
import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from inti_jax.data.builders.names import printable

# What operating systems and storage appliances put beside users' files.
_SYSTEM = frozenset(("lost+found", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"))


class Skipped(NamedTuple):
    """A place that was left out, and a one-line reason.

    `folder` says that what is in it is not known. With `again` it was read by another path.
    """

    path: Path
    reason: str
    folder: bool = False
    again: bool = False


class Directory(NamedTuple):
    """A folder: its files and its folders, sorted by name, and what in it was left out."""

    path: Path
    files: list[str]
    folders: list[Path]
    skipped: list[Skipped]


def walk(root: Path) -> Iterator[Directory]:
    """Go through `root` and the folders below it, depth first and sorted, hidden ones left out.

    A folder that can be reached in several ways is read once: where it really is rather than by a link.
    Links up, to `root` or to what contains it, are not followed, nor is `root` if it is one. Nothing is
    raised for a folder that cannot be read, `root` included: it is `skipped`.
    """
    seen: dict[tuple[int, int], Path] = {}
    # Where it is and where it leads: a class may be a link.
    for parent in (*root.absolute().parents, *root.resolve().parents):
        with contextlib.suppress(OSError):
            seen[_identity(parent)] = parent
    real, links = [root], collections.deque[Path]()
    while real or links:
        path = real.pop() if real else links.popleft()
        try:
            identity = _identity(path)
            if identity in seen:
                reason = f"a link to a folder that is read already or above: {printable(str(seen[identity]))}"
                yield Directory(path, [], [], [Skipped(path, reason, again=True)])
                continue
            seen[identity] = path
            directory = read_directory(path)
        except OSError as error:
            reason = f"the folder cannot be read: {error.strerror}"
            yield Directory(path, [], [], [Skipped(path, reason, folder=True)])
            continue
        links += (folder for folder in directory.folders if folder.is_symlink())
        real += (folder for folder in reversed(directory.folders) if not folder.is_symlink())
        yield directory


def read_directory(path: Path) -> Directory:
    """List one folder, without what is hidden or the system's. Raises OSError."""
    files, folders, skipped = [], [], []
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name in _SYSTEM:
                continue
            if reason := _fault(entry):
                skipped.append(Skipped(path / entry.name, reason))
            elif entry.is_dir():
                folders.append(path / entry.name)
            else:
                files.append(entry.name)
    return Directory(path, files, folders, skipped)


def _fault(entry: os.DirEntry[str]) -> str:
    """Say why an entry is neither a file nor a folder; empty where it is one."""
    try:
        if entry.is_file() or entry.is_dir():
            return ""
        mode = entry.stat().st_mode
    except OSError as error:
        if entry.is_symlink():
            target = printable(str(Path(entry.path).readlink()))
            return f"a link to {target}, which cannot be reached: {error.strerror}"
        return f"it cannot be read: {error.strerror}"
    return f"neither a file nor a folder, but {'a pipe' if stat.S_ISFIFO(mode) else 'a device or a socket'}"


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
