"""Run a command: from its errors to one line and an exit status, and its outputs to where they belong."""

import codecs
import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inti_jax.errors import Stopped, UserError
from inti_jax.host import mirrors, stores


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main`; turn an error that is no bug into one line on stderr and an exit status.

    Outputs that are meant for an object store are written there in the end, also where the command fails.

    Such errors are a UserError, a signal, and an OSError with a filename: a file in place of a directory, a
    full disk. Where the reader of the output has gone (`| head`), the command ends silently with the status
    of SIGPIPE. File names may have any bytes; they are printed as they are.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ANY_TEXT)
    message, status, refused = "", 0, None
    try:
        try:
            main()
        finally:
            mirrors.push_outputs()
    except UserError as error:
        message, status = f"error: {error}", error.exit_code
    except Stopped as stopped:
        message, status = stopped.message, stopped.status
    except KeyboardInterrupt:
        message, status = "interrupted", 130
    except SystemExit:  # from argparse, which has printed the reason
        _flush(sys.stdout)
        raise
    except OSError as error:
        if error.filename is not None:
            message, status = f"error: {error.filename}: {error.strerror}", UserError.exit_code
        else:
            # An unbuffered stream has nothing left to flush: one more line shows whether it accepts output.
            refused = _flush(sys.stdout, more="\n") or _flush(sys.stderr, more="\n")
            if refused is None:  # the output works, so the error is a bug
                raise
    refused = refused or _flush(sys.stdout)
    if refused is not None and status == 0:
        status = 128 + signal.SIGPIPE if refused.errno == errno.EPIPE else UserError.exit_code
        message = "" if refused.errno == errno.EPIPE else f"error: the output: {refused.strerror}"
    if message:
        say(stores.shown(message))
    _flush(sys.stderr)  # a failure here does not change the status
    if status:
        sys.exit(status)


def say(line: str) -> None:
    """Print a line to stderr at once, and ignore errors from a stderr that is closed or unread.

    The work that follows must not depend on a reader.
    """
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def _flush(stream: Any, more: str = "") -> OSError | None:
    """Flush the printed text and `more`; give the error where the system refuses it.

    After an error the stream leads to /dev/null, so that nothing is refused again.
    """
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
    """Encode text that an encoding lacks: bytes of a file's name as they are, the rest as escapes."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


_ANY_TEXT = "inti_jax.any_text"
codecs.register_error(_ANY_TEXT, _as_bytes)
