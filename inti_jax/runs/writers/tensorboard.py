"""Write a run's numbers as curves for TensorBoard."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from inti_jax.config import Config
from inti_jax.errors import naming
from inti_jax.runs import layout
from inti_jax.runs.writers.protocol import scalars


class TensorBoard:
    """A Writer of an event file, in the caller's thread. An OSError that it raises names the file.

    It builds on the parts of tensorboardX, which are not documented. The documented `SummaryWriter` writes in
    a thread that a full disk ends, after which the next record waits for that thread for ever; and it has no
    way to write a session's start alone.
    """

    def __init__(self, workdir: Path, config: Config, from_step: int | None):
        """Open a new event file; TensorBoard then hides what earlier files have after `from_step`."""
        directory = layout.tensorboard_dir(workdir)
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "events"
        with naming(self._path):
            self._events = EventsWriter(str(self._path))
        if from_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(step=from_step + 1, session_log=start))

    def write(self, step: int, split: str, figures: Mapping[str, Any], variant: Sequence[str]) -> None:
        """Append the finite numbers of a record to their curves."""
        for name, value in scalars(split, figures, variant).items():
            self._write(event_pb2.Event(step=step, summary=summary.scalar(name, value)))
        with naming(self._path):
            self._events.flush()

    def settle(self) -> None:
        """Do nothing: each record is flushed, and metrics.jsonl is what a run relies on."""

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # what a full disk refused, it refuses again
            self._events.close()

    def _write(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        with naming(self._path):
            self._events.write_event(event)
