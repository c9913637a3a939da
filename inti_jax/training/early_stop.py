"""Stop training early, when the validation metric no longer rises."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from inti_jax.config import Train
from inti_jax.runs import evaluations
from inti_jax.runs.evaluations import Evaluation, Setting

log = logging.getLogger("inti_jax")


def reached(workdir: Path, train: Train, own: Setting, step: int) -> bool:
    """Decide from metrics.jsonl whether training ends at `step`, which was evaluated.

    Only evaluations under the setting `own` count. Process 0, which alone writes the records, reads them and
    decides for all hosts.
    """
    if not train.early_stop.patience:
        return False
    found = None
    if jax.process_index() == 0:
        found = reason(evaluations.by_step(evaluations.read(workdir), own), train, step)
    ends = found is not None
    if jax.process_count() > 1:
        ends = bool(multihost_utils.broadcast_one_to_all(np.int32(ends)))
    if found is not None:
        log.info("step %d: stopping early: %s; raise `train.early_stop.patience` to train on", step, found)
    return ends


def reason(found: Mapping[int, Evaluation], train: Train, step: int) -> str | None:
    """Explain why training ends at `step`; None where it goes on.

    `found` has the evaluations by ascending step. Those after `step`, and those at steps where none was due,
    do not count: they were made by hand.
    """
    settings = train.early_stop
    figures = {
        at: figure
        for at, each in found.items()
        if at <= step and at % train.eval_every_steps == 0
        if math.isfinite(figure := getattr(each, settings.metric))
    }
    if step not in figures:
        return None
    best, since = next(iter(figures)), -1
    for at, figure in figures.items():
        since += 1
        if figure > figures[best] + settings.min_delta:
            best, since = at, 0
    if since < settings.patience:
        return None
    return (
        f"`{settings.metric}` was {figures[best]:.4f} at step {best} and has not risen by more than "
        f"{settings.min_delta:g} in {since} evaluation{'s' if since > 1 else ''} since"
    )
