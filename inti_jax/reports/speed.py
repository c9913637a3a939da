"""Measure the speed of runs' models on this machine."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from inti_jax.reports.runs import Run

_BATCH = 16
_ROUNDS = 7


def measure(runs: Sequence[Run]) -> dict[Path, float]:
    """Measure the clips a second of each run's model on one device: the median of rounds in turns.

    A run without a checkpoint, of which only the start was evaluated, is left out.
    """
    import numpy as np

    from inti_jax.evaluation.classifier import load
    from inti_jax.runs import checkpoint

    timed = [run for run in runs if checkpoint.steps(run.workdir)]
    models = {run.workdir: (run.record.config.data, load(run.workdir)) for run in timed}
    seconds: dict[Path, list[float]] = {workdir: [] for workdir in models}
    for _ in range(_ROUNDS + 1):
        for workdir, (data, model) in models.items():
            shape = (_BATCH, data.num_frames, *data.height_width, 3)
            video = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
            started = time.perf_counter()
            model(video)
            seconds[workdir].append(time.perf_counter() - started)
    # The first round compiles.
    return {workdir: _BATCH / statistics.median(taken[1:]) for workdir, taken in seconds.items()}


def note(timed: bool) -> str:
    """Say how the speeds of a page are measured; `timed` where inference is among them."""
    training = "Training is timed over the whole run with its input."
    return f"Inference is timed on random frames in batches of {_BATCH}. {training}" if timed else training
