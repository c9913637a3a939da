"""Errors whose message is meant for the user: one line that says what, where and the remedy."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


class UserError(Exception):
    """Something outside the program is wrong: a file, a dataset, a flag. Shown without traceback."""

    exit_code = 1


class UsageError(UserError):
    """The command was called wrongly."""

    exit_code = 2


class Stopped(SystemExit):
    """A signal ended the work in good order. Shown as it is; the exit status is 128 + the signal's number."""

    def __init__(self, message: str, number: int):
        super().__init__(128 + number)
        self.message = message


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives what the system refuses meanwhile the name of `path`: writing to an open file leaves it out."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def run_command(main: Callable[[], None]) -> None:
    """Runs a command's `main`; a UserError becomes one line on stderr and its exit status.

    So does what the system refuses with a path's name: a file where a directory should be, a full disk.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(1)
    except Stopped as stopped:
        print(stopped.message, file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
