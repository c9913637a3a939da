"""Write a run's numbers as curves for TensorBoard."""

import contextlib
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inti_jax.config import Config
from inti_jax.errors import naming
from inti_jax.runs import layout
from inti_jax.runs.writers.protocol import scalars


class TensorBoard:
    """A Writer of an event file, in the caller's thread. An OSError that it raises names the file.

    It builds on TensorBoard's messages and its writer of records. The documented `tensorboard.summary.Writer`
    writes in a thread that a full disk ends, and has no way to write a session's start alone.
    """

    def __init__(self, workdir: Path, config: Config, from_step: int | None):
        """Open a new event file; TensorBoard then hides what earlier files have after `from_step`."""
        # Imported here, since commands that only read a run should not wait for it.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        directory = layout.tensorboard_dir(workdir)
        directory.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a directory in the order of their names, so the time comes first.
        start = f"{time.time():017.6f}"
        self._path = directory / f"events.out.tfevents.{start}.{platform.node()}.{os.getpid()}"
        with naming(self._path):
            self._records = RecordWriter(self._path.open("xb"))
        self._write(self._event(file_version="brain.Event:2"))
        if from_step is not None:
            session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(self._event(step=from_step + 1, session_log=session))

    def write(self, step: int, split: str, figures: Mapping[str, Any], variant: Sequence[str]) -> None:
        """Append the finite numbers of a record to their curves."""
        for name, value in scalars(split, figures, variant).items():
            summary = self._summary(value=[self._summary.Value(tag=name, simple_value=value)])
            self._write(self._event(step=step, summary=summary))
        with naming(self._path):
            self._records.flush()

    def settle(self) -> None:
        """Do nothing: each record is flushed, and metrics.jsonl is what a run relies on."""

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # what a full disk refused, it refuses again
            self._records.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        with naming(self._path):
            self._records.write(event.SerializeToString())
