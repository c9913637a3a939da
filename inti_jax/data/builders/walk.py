"""Walk a source's folders, each once and through links, and list unreadable places with the reason."""

import collections
import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from inti_jax.host.names import printable

# Folders that operating systems and storage appliances put beside users' files.
_SYSTEM = frozenset(("lost+found", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"))


class Skipped(NamedTuple):
    """A place that was left out, and a one-line reason.

    `folder` is True for a folder whose contents are unknown. `again` is True for a link to a folder that is
    read by another path or lies above.
    """

    path: Path
    reason: str
    folder: bool = False
    again: bool = False


class Directory(NamedTuple):
    """A folder: its files and its folders, sorted by name, and the entries that were left out."""

    path: Path
    files: list[str]
    folders: list[Path]
    skipped: list[Skipped]


def walk(root: Path) -> Iterator[Directory]:
    """Yield `root` and the folders below it, depth first and sorted, without hidden ones.

    A folder that several paths lead to is read once, at its real place rather than through a link. Links to
    `root` or to a folder above it are not followed, even if `root` itself is such a link. A folder that
    cannot be read, `root` included, raises nothing: it is listed as `skipped`.
    """
    seen: dict[tuple[int, int], Path] = {}
    # The folders above `root`, and those above its target: `root` may be a link, such as a class folder.
    for parent in (*root.absolute().parents, *root.resolve().parents):
        with contextlib.suppress(OSError):
            seen[_identity(parent)] = parent
    real, links = [root], collections.deque[Path]()
    while real or links:
        path = real.pop() if real else links.popleft()
        try:
            identity = _identity(path)
            if identity in seen:
                reason = (
                    "a link to a folder that contains it or is already read: "
                    f"{printable(str(seen[identity]))}"
                )
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
    """List one folder, without hidden entries and folders of the system. Raises OSError."""
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
    """Return the reason why an entry is neither a file nor a folder; empty if it is one."""
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
