"""Report a run to metrics.jsonl, TensorBoard and a progress bar, from process 0 alone."""

import contextlib
import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tqdm import tqdm

from inti_jax.errors import UserError, naming
from inti_jax.runs import layout

log = logging.getLogger("inti_jax")


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Read the records of metrics.jsonl, leaving out a last line that a kill cut short.

    Raises UserError for any other line that is not a record.
    """
    path = layout.metrics_path(workdir)
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text(errors="replace").split("\n")[:-1], start=1):
        try:
            record = json.loads(line)
            records.append({**record, "step": int(record["step"]), "split": str(record["split"])})
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}: line {number} is no record of a run; mend or delete it") from None
    return records


class MetricsWriter:
    """Append records to metrics.jsonl and to TensorBoard."""

    def __init__(self, workdir: Path, *, from_step: int | None = None):
        """Open the files; with `from_step`, first drop the records of later steps.

        A run that goes on after `from_step` writes those again. Records of faults are kept, because the user
        looks there for the ids of the batch.
        """
        self._file = self._board = None
        if jax.process_index() != 0:
            return
        self._path = layout.metrics_path(workdir)
        kept = [
            record
            for record in read_metrics(workdir)
            if from_step is None or record["step"] <= from_step or record["split"] == "fault"
        ]
        partial = self._path.with_suffix(".partial")
        with naming(partial):
            partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        partial.replace(self._path)
        self._board = _Board(layout.tensorboard_dir(workdir), from_step)
        self._file = self._path.open("a")

    def write(self, step: int, split: str, figures: dict[str, Any], *, variant: Sequence[str] = ()) -> None:
        """Append a record; in TensorBoard `variant` separates its curves from others of the same split.

        Raises OSError, with the file's name, where it cannot be written.
        """
        if self._file is None or self._board is None:
            return
        with naming(self._path):
            self._file.write(json.dumps({"step": step, "split": split, **figures}) + "\n")
            self._file.flush()
        group = re.sub(r"\W+", "_", "_".join([split, *variant]))
        for name, value in figures.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._board.add_scalar(f"{group}/{name}", value, step)
        self._board.flush()

    def settle(self) -> None:
        """Make sure that the records so far outlive this machine, as the checkpoint that follows does.

        Syncs the file, then closes and reopens it: a bucket that is mounted as a directory gets what was
        written when the file is closed.
        """
        if self._file is None:
            return
        with naming(self._path):
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = self._path.open("a")

    def close(self) -> None:
        """Close the files."""
        if self._file is not None and self._board is not None:
            # All is flushed already. Closing retries what a full disk refused, and it is refused again.
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                self._board.close()


class _Board:
    """An event file for TensorBoard, written in the caller's thread.

    tensorboardX's own writer has a thread, which a full disk ends. The next records would then wait for that
    thread for ever.
    """

    def __init__(self, directory: Path, from_step: int | None):
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "events"
        with naming(self._path):
            self._events = EventsWriter(str(self._path))
            if from_step is not None:
                # Makes TensorBoard hide what earlier files have from this step on.
                self._write(
                    event_pb2.Event(
                        step=from_step + 1,
                        session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START),
                    )
                )

    def add_scalar(self, name: str, value: int | float, step: int) -> None:
        self._write(event_pb2.Event(step=step, summary=summary.scalar(name, value)))

    def flush(self) -> None:
        with naming(self._path):
            self._events.flush()

    def close(self) -> None:
        self._events.close()

    def _write(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        with naming(self._path):
            self._events.write_event(event)


class Progress:
    """A progress bar on a terminal, and a log line for each update elsewhere."""

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
