"""Write lines to a terminal on which progress bars may stand."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from inti_jax.host import stores

Stream = TextIO | io.TextIOBase


def coloured(stream: Stream) -> bool:
    """Tell whether text on `stream` may have colours: on a terminal that has them, without NO_COLOR."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown")
    return stream.isatty() and not plain


def say(text: str, stream: Stream | None = None) -> None:
    """Print a text on stdout, or on `stream`, at once. On a terminal, progress bars make room for it.

    URLs stand in it in place of the paths that stand for them on this machine.
    """
    stream = sys.stdout if stream is None else stream
    with _beside_bars(stream):
        print(stores.shown(text), file=stream, flush=True)


class Log(logging.StreamHandler):
    """A handler that logs to stderr, above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log a line."""
        with _beside_bars(self.stream):
            super().emit(record)


@contextlib.contextmanager
def _beside_bars(stream: Stream) -> Iterator[None]:
    """Take the progress bars off the terminal while something is written there."""
    if not stream.isatty():
        yield
        return
    from tqdm import tqdm  # late: --help need not wait for it

    with tqdm.external_write_mode(file=stream):
        yield
