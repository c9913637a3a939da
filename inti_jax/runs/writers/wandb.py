"""Write a run's numbers as curves for Weights & Biases, by the optional library `wandb`.

Project, entity, key and mode are chosen as wandb documents: by `wandb login` and variables such as
`WANDB_PROJECT` and `WANDB_MODE=offline`.
"""

import dataclasses
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from inti_jax.config import Config
from inti_jax.errors import naming
from inti_jax.runs import layout
from inti_jax.runs.writers.protocol import scalars

log = logging.getLogger("inti_jax")

# Seconds that a run may wait at its start, for a key that wandb asks for and for an answer, and at its end
# until the last records are uploaded.
_TIMEOUT = 60


class WeightsAndBiases:
    """A Writer of a run at Weights & Biases.

    A directory has one run there, also when it goes on or is evaluated again. Records cannot be taken back:
    steps that are done again after a kill are there twice. A failure never ends the training. The first one
    is logged, and nothing more is written.
    """

    def __init__(self, workdir: Path, config: Config, from_step: int | None):
        """Start the run at Weights & Biases, or go on with that of `workdir`."""
        self._run: Any = None
        self._attempt(lambda: self._start(workdir, config))

    def write(self, step: int, split: str, figures: Mapping[str, Any], variant: Sequence[str]) -> None:
        """Send the finite numbers of a record, with `step` as the x of their curves."""
        # wandb's own step only rises, and a checkpoint may be evaluated later.
        self._attempt(lambda: self._run and self._run.log({**scalars(split, figures, variant), "step": step}))

    def settle(self) -> None:
        """Do nothing: wandb's own process uploads the records as they come."""

    def close(self) -> None:
        """Wait until the records are uploaded, for a limited time."""
        self._attempt(lambda: self._run and self._run.finish())

    def _start(self, workdir: Path, config: Config) -> None:
        import wandb

        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "inti_jax"),
            name=os.environ.get("WANDB_NAME", workdir.absolute().name),
            dir=str(workdir),
            id=_run_id(workdir),
            resume="allow",
            config=dataclasses.asdict(config),
            # A run that goes on may have other values of some keys.
            allow_val_change=True,
            # The terminal stays ours.
            settings=wandb.Settings(
                console="off",
                login_timeout=_TIMEOUT,
                init_timeout=_TIMEOUT,
                finish_timeout=_TIMEOUT,
            ),
        )
        run.define_metric("*", step_metric="step")
        self._run = run

    def _attempt(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # of many kinds: the network, the key, wandb's process, the disk
            self._run = None
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning("Weights & Biases receives no more records (%s); metrics.jsonl still does", reason)


def _run_id(workdir: Path) -> str:
    """Read the id of the run at Weights & Biases, which `workdir` keeps; choose one where it has none."""
    path = layout.wandb_id_path(workdir)
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        with naming(path):
            path.write_text(secrets.token_hex(8) + "\n")
    return path.read_text().strip()
