"""Errors whose message is meant for the user: one line that says what, where and the remedy."""

import codecs
import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class UserError(Exception):
    """Something outside the program is wrong: a file, a dataset, a flag. Shown without traceback."""

    exit_code = 1


class UsageError(UserError):
    """The command was called wrongly."""

    exit_code = 2


class Stopped(SystemExit):
    """A signal ended the work in good order. Shown as it is; the exit status is 128 + the signal's number."""

    def __init__(self, message: str, number: int):
        self.message, self.status = message, 128 + number
        super().__init__(self.status)


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
    """Run a command's `main`; what ends it that is no bug becomes one line on stderr and an exit status.

    That is a UserError, a signal, and what the system refuses with a path's name: a file where a directory
    should be, a full disk. Where whoever reads the output has gone (`| head`), it ends without a word and
    with the status of SIGPIPE. File names may have any bytes: they are printed as they are.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ANY_TEXT)
    message, status, refused = "", 0, None
    try:
        main()
    except UserError as error:
        message, status = f"error: {error}", error.exit_code
    except Stopped as stopped:
        message, status = stopped.message, stopped.status
    except KeyboardInterrupt:
        message, status = "interrupted", 130
    except SystemExit:  # of argparse, which has said why
        _flush(sys.stdout)
        raise
    except OSError as error:
        if error.filename is not None:
            message, status = f"error: {error.filename}: {error.strerror}", UserError.exit_code
        else:
            # Nothing is left to be written where nobody buffers: is more taken?
            refused = _flush(sys.stdout, more="\n") or _flush(sys.stderr, more="\n")
            if refused is None:  # then the error is not the output's, but a bug
                raise
    refused = refused or _flush(sys.stdout)
    if refused is not None and status == 0:
        status = 128 + signal.SIGPIPE if refused.errno == errno.EPIPE else UserError.exit_code
        message = "" if refused.errno == errno.EPIPE else f"error: the output: {refused.strerror}"
    if message:
        say(message)
    _flush(sys.stderr)  # what nobody reads of it changes no status
    if status:
        sys.exit(status)


def say(line: str) -> None:
    """Print a line to stderr at once, if anyone is there to read it: what follows must not depend on that."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def _flush(stream: Any, more: str = "") -> OSError | None:
    """Write what was printed, and `more`; give what the system refuses of it, once and for all."""
    if stream is None:  # it was closed before the start
        return None
    try:
        print(end=more, file=stream, flush=True)
    except OSError as error:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        return error
    return None


def _as_bytes(error: Any) -> tuple[str | bytes, int]:
    """Encode what an encoding does not have: bytes of a file's name as they are, the rest as escapes."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


_ANY_TEXT = "inti_jax.any_text"
codecs.register_error(_ANY_TEXT, _as_bytes)
