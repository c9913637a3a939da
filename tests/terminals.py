"""A pseudo-terminal, and what a reader of it sees."""

import contextlib
import fcntl
import os
import re
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from unittest import mock

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# Variables by which the tests' own surroundings would change what is drawn.
_CHANGING = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "LINES")


def environment(columns: int) -> dict[str, str]:
    """Return this process's environment, for a program on a terminal of `columns`."""
    kept = {name: value for name, value in os.environ.items() if name not in _CHANGING}
    return kept | {"TERM": "xterm-256color", "COLUMNS": str(columns)}


class Terminal:
    """A pseudo-terminal; `descriptor` is what a process writes to."""

    def __init__(self, columns: int):
        self._master, self.descriptor = os.openpty()
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self._read: list[bytes] = []
        self._reader = threading.Thread(target=self._collect)
        self._reader.start()

    def _collect(self) -> None:
        # The system reports an error once nobody can write any more.
        with contextlib.suppress(OSError):
            while found := os.read(self._master, 65536):
                self._read.append(found)

    def close(self) -> str:
        """End the writing; return all that was written."""
        os.close(self.descriptor)
        self._reader.join()
        os.close(self._master)
        return b"".join(self._read).decode().replace("\r\n", "\n")


@contextlib.contextmanager
def stdout_on_terminal(columns: int = 160) -> Iterator[list[str]]:
    """Let sys.stdout be a terminal; the list has what was written, once the context ends."""
    terminal, before, written = Terminal(columns), sys.stdout, list[str]()
    sys.stdout = os.fdopen(os.dup(terminal.descriptor), "w", encoding="utf-8")
    try:
        with mock.patch.dict(os.environ, environment(columns), clear=True):
            yield written
    finally:
        sys.stdout.close()
        sys.stdout = before
        written.append(terminal.close())
