"""Write a run's records to metrics.jsonl, and read them back."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inti_jax.config import Config
from inti_jax.errors import UserError, naming
from inti_jax.runs import layout


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
            raise UserError(f"{path}: line {number} is not a record of a run: correct or delete it") from None
    return records


class JsonLines:
    """A Writer of metrics.jsonl, a line for each record. An OSError that it raises names the file."""

    def __init__(self, workdir: Path, config: Config, from_step: int | None):
        """Open the file; with `from_step`, first drop the records of later steps.

        Records of faults are kept, because the user looks there for the ids of the batch.
        """
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
        self._file = self._path.open("a")

    def write(self, step: int, split: str, figures: Mapping[str, Any], variant: Sequence[str]) -> None:
        """Append a line. The figures themselves say what `variant` does."""
        with naming(self._path):
            self._file.write(json.dumps({"step": step, "split": split, **figures}) + "\n")
            self._file.flush()

    def settle(self) -> None:
        """Sync the file, then close and reopen it.

        A bucket that is mounted as a directory gets what was written when the file is closed.
        """
        with naming(self._path):
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = self._path.open("a")

    def close(self) -> None:
        """Close the file."""
        # All is flushed already. Closing retries what a full disk refused, and it is refused again.
        with contextlib.suppress(OSError):
            self._file.close()
