"""Lock files so that one process at a time holds them, across machines, network file systems and stores."""

import contextlib
import errno
import fcntl
import itertools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from inti_jax.errors import naming
from inti_jax.host import leases, stores
from inti_jax.host.leases import HeldError

# Attempts to open the file that may fail in a row because other processes remove its directory.
_ATTEMPTS = 100


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the file `path`: create it, with its directory, lock it, and remove it in the end.

    The lock ends with the process, however abruptly that ends. Where a file system has no locks, several
    processes may hold the file. In an object store, where files cannot be locked, see `leases`. Raises
    HeldError where another process holds it.
    """
    if url := stores.origin(path):
        with leases.held(url):
            yield
        return
    with _locked(path, fcntl.LOCK_EX) as file:
        try:
            with naming(path):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            yield
        finally:
            # Removed while locked: a process that has opened it by now finds it gone, and makes another.
            if _is_called(file, path):  # else the path is a file of another process, which found it free
                path.unlink()


@contextlib.contextmanager
def shared(path: Path) -> Iterator[None]:
    """Hold the file `path` together with all who do so: until the last ends, `held` raises HeldError.

    Raises HeldError where a process holds it alone for longer than a moment.
    """
    for attempt in itertools.count(1):
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_locked(path, fcntl.LOCK_SH))
            except HeldError:
                if attempt == _ATTEMPTS:
                    raise
                time.sleep(0.05)
                continue
            yield
            return


@contextlib.contextmanager
def _locked(path: Path, kind: int) -> Iterator[BinaryIO]:
    """Open and lock the file at `path`, and make sure that `path` still leads to it once it is locked."""
    for attempt in itertools.count(1):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: closing a buffered file would try again a write that a full disk refused.
            file = path.open("ab+", buffering=0)
        except (FileNotFoundError, FileExistsError):
            if attempt == _ATTEMPTS:
                raise
            continue  # another process may just have removed the directory
        with file:
            _lock(file, kind)
            if _is_called(file, path):
                yield file
                return
        # Another process held the file when this one opened it, and has removed it since: try again.


def _lock(file: BinaryIO, kind: int) -> None:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise HeldError(file.read().decode(errors="replace").strip() or "another process") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
            raise
        # The file system has no locks: users have to take care themselves.


def _is_called(file: BinaryIO, path: Path) -> bool:
    """Tell whether `path` still leads to the open `file`."""
    try:
        with path.open("rb") as found:  # network file systems look anew at an open, not at a stat
            return os.path.samestat(os.fstat(found.fileno()), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
