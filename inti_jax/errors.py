"""Define errors meant for the user: one line with the problem, its place and the remedy."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


class UserError(Exception):
    """An error outside the program: in a file, a dataset or a flag. Shown without traceback."""

    exit_code = 1


class UsageError(UserError):
    """A wrong use of a command, such as an argument that it does not take."""

    exit_code = 2


class Stopped(SystemExit):
    """An orderly end after a signal. Shown as it is; the exit status is 128 + the signal's number."""

    def __init__(self, message: str, number: int):
        self.message, self.status = message, 128 + number
        super().__init__(self.status)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add `path` to an OSError raised inside that lacks a filename.

    The system names no file where a write to an open one fails.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
