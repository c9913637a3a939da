"""Files that one process at a time can hold, over machines and network file systems."""

import contextlib
import errno
import fcntl
import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from inti_jax.errors import naming

# In a row that may fail because other processes remove the directory.
_ATTEMPTS = 100


class HeldError(Exception):
    """Another process holds the file; the message is what it wrote there of itself."""


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the file `path`, which is made with its directory and removed in the end.

    What ends a process, however hard, ends its hold. Where a file system has no locks, several may hold it.
    Raises HeldError where another process does.
    """
    with _locked(path) as file:
        try:
            with naming(path):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            yield
        finally:
            # While it is locked: who has opened it by now finds that it is gone, and makes another.
            if _is_called(file, path):  # else it is another's, who found the path free
                path.unlink()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Open and lock the file that `path` leads to from then on."""
    for attempt in itertools.count(1):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: else closing it would try again what a full disk refused.
            file = path.open("ab+", buffering=0)
        except (FileNotFoundError, FileExistsError):
            if attempt == _ATTEMPTS:
                raise
            continue  # another process may have just removed the directory
        with file:
            _lock(file)
            if _is_called(file, path):
                yield file
                return
        # Another process held the file when this one opened it, and has removed it since.


def _lock(file: BinaryIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise HeldError(file.read().decode(errors="replace").strip() or "another process") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
            raise
        # A file system without locks: then users have to take care.


def _is_called(file: BinaryIO, path: Path) -> bool:
    """Tell whether `path` still leads to the open `file`."""
    try:
        with path.open("rb") as found:  # network file systems look anew for an open, not for a stat
            return os.path.samestat(os.fstat(found.fileno()), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
