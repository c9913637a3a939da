"""Show the progress of long work on the terminal or in the log."""

import logging
import sys

import jax
from tqdm import tqdm

log = logging.getLogger("inti_jax")


class Progress:
    """A progress bar on a terminal, and a log line for each update elsewhere. Only process 0 shows it."""

    def __init__(self, name: str, total: int, start: int = 0):
        self._bar = None
        self._name, self._total, self._at = name, total, start
        if jax.process_index() == 0 and sys.stderr.isatty():
            self._bar = tqdm(desc=name, total=total, initial=start, dynamic_ncols=True)

    def advance(self) -> None:
        """Count one more step."""
        self._at += 1
        if self._bar is not None:
            self._bar.update()

    def show(self, text: str) -> None:
        """Show `text` beside the bar, or log it with the count of steps."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif jax.process_index() == 0:
            log.info("%s %d/%d  %s", self._name, self._at, self._total, text)

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
