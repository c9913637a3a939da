"""Open the writers that a run's config names, and write each record to all of them."""

import contextlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from inti_jax.config import Config
from inti_jax.errors import UserError
from inti_jax.runs import layout
from inti_jax.runs.writers.jsonl import JsonLines
from inti_jax.runs.writers.protocol import Writer
from inti_jax.runs.writers.tensorboard import TensorBoard
from inti_jax.runs.writers.wandb import WeightsAndBiases

# The writers by their names in `train.writers`.
_WRITERS: Mapping[str, Callable[[Path, Config, int | None], Writer]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}
# Libraries that only an extra of the same name installs.
_EXTRAS = ("wandb",)


def check(config: Config) -> None:
    """Raise UserError where a library for one of the config's writers is not installed."""
    for name in config.train.writers:
        # A directory of that name, such as wandb leaves behind, has a spec without an origin.
        if name in _EXTRAS and getattr(importlib.util.find_spec(name), "origin", None) is None:
            raise UserError(
                f"config: `train.writers` has {name!r}, which is not installed: "
                f"run `pip install 'inti_jax[{name}]'`, or leave it out"
            )


class MetricsWriter:
    """Writes the records of a run to metrics.jsonl and to the writers of `train.writers`.

    Does nothing in processes other than 0.
    """

    def __init__(self, workdir: Path, config: Config, *, from_step: int | None = None):
        """Open the writers; see `Writer` for `from_step`."""
        self._workdir = workdir
        self._writers: list[Writer] = []
        if jax.process_index() != 0:
            return
        with contextlib.ExitStack() as opened:
            # metrics.jsonl is first, so that it has a record that another writer refuses.
            for make in (JsonLines, *(_WRITERS[name] for name in dict.fromkeys(config.train.writers))):
                writer = make(workdir, config, from_step)
                opened.callback(writer.close)
                self._writers.append(writer)
            opened.pop_all()

    def write(
        self, step: int, split: str, figures: Mapping[str, Any], *, variant: Sequence[str] = ()
    ) -> None:
        """Write a record; `variant` separates its curves from others of the same split.

        Raises OSError, with the file's name, where a file cannot be written.
        """
        for writer in self._writers:
            writer.write(step, split, figures, variant)

    def settle(self) -> None:
        """Make sure that the records so far outlive this machine, as the checkpoint that follows does."""
        for writer in self._writers:
            writer.settle()
        if self._writers:
            layout.settle(self._workdir)

    def close(self) -> None:
        """Close the writers."""
        for writer in self._writers:
            writer.close()
