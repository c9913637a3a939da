"""What a run reports while it runs: metrics.jsonl, TensorBoard and progress. Process 0 alone writes."""

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from inti_jax import run
from inti_jax.errors import UserError

log = logging.getLogger("inti_jax")


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The whole records of metrics.jsonl; a last line that a kill cut short is left out.

    Raises UserError for any other line that is not a record.
    """
    path = run.metrics_path(workdir)
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
    """Appends records to metrics.jsonl and to TensorBoard."""

    def __init__(self, workdir: Path, *, from_step: int | None = None):
        """With `from_step` goes on after it: later records of a killed run will be written again, so they go.

        What a fault left is kept: the batch's ids are what its user looks for.
        """
        self._file = self._board = None
        if jax.process_index() != 0:
            return
        path = run.metrics_path(workdir)
        kept = [
            record
            for record in read_metrics(workdir)
            if from_step is None or record["step"] <= from_step or record["split"] == "fault"
        ]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        partial.replace(path)
        self._file = path.open("a")
        purge = None if from_step is None else from_step + 1
        self._board = SummaryWriter(str(run.tensorboard_dir(workdir)), purge_step=purge)

    def write(self, step: int, split: str, figures: dict[str, Any]) -> None:
        if self._file is None or self._board is None:
            return
        self._file.write(json.dumps({"step": step, "split": split, **figures}) + "\n")
        self._file.flush()
        for name, value in figures.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._board.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


class Progress:
    """A bar on a terminal; elsewhere the text of each update as a plain line."""

    def __init__(self, name: str, total: int, start: int = 0):
        self._bar = None
        self._name, self._total, self._at = name, total, start
        if jax.process_index() == 0 and sys.stderr.isatty():
            self._bar = tqdm(desc=name, total=total, initial=start, dynamic_ncols=True)

    def advance(self) -> None:
        self._at += 1
        if self._bar is not None:
            self._bar.update()

    def show(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif jax.process_index() == 0:
            log.info("%s %d/%d  %s", self._name, self._at, self._total, text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
