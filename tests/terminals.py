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

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


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
    environment = {"TERM": "xterm-256color", "COLUMNS": str(columns)}
    kept = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    sys.stdout = os.fdopen(os.dup(terminal.descriptor), "w", encoding="utf-8")
    try:
        yield written
    finally:
        sys.stdout.close()
        sys.stdout = before
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        written.append(terminal.close())
