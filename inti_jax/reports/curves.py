"""Gather the curves of a run from its records: figures by step, restarts and compilations."""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float

from inti_jax.reports.runs import Run

# The figures of a `train` record that have a curve.
FIGURES = (
    "loss",
    "top1",
    "learning_rate",
    "grad_norm",
    "step_seconds",
    "data_wait",
    "videos_per_second",
    "mfu",
    "resident_bytes",
    "hbm_bytes",
    "hbm_peak_bytes",
)

# Points of a curve at most, which bounds the size of a page.
MOST = 2000

# How much of a smoothed curve is from before the record at hand.
_WEIGHT = 0.9


@dataclasses.dataclass(frozen=True)
class Validation:
    """The figure that runs are judged by, from 0 to 1, at each step that was evaluated.

    `differences` says how the evaluations differ from the run's own, and is "" for these.
    """

    differences: str
    steps: Float[np.ndarray, " E"]
    values: Float[np.ndarray, " E"]


@dataclasses.dataclass(frozen=True)
class Compilation:
    """A program that was compiled, or loaded from the cache of compiled programs."""

    step: int
    what: str
    seconds: float
    cached: bool

    @property
    def how(self) -> str:
        """Describe in words how the program was made: compiled, or read from the cache."""
        return "from the cache" if self.cached else "compiled"


@dataclasses.dataclass(frozen=True)
class Blends:
    """The distribution of a compressor's weights by step, over the patches of a training batch.

    `means` and `stds` are of the weight of each frame of a group of g, and `far` is the share of patches with
    a weight far from 1 / g.
    """

    block: int  # the number of the block before the compressor, from 1
    steps: Float[np.ndarray, " N"]
    means: Float[np.ndarray, "g N"]
    stds: Float[np.ndarray, "g N"]
    far: Float[np.ndarray, " N"]


@dataclasses.dataclass(frozen=True)
class Curves:
    """The curves of a run. `figures` are by the names in metrics.jsonl; NaN where a record lacks one.

    A point of `steps` and `figures` is the mean of `averaged` consecutive records.
    """

    steps: Float[np.ndarray, " N"]
    figures: dict[str, Float[np.ndarray, " N"]]
    averaged: int
    validation: list[Validation]
    restarts: list[int]  # the steps from which the run went on
    compilations: list[Compilation]
    blends: list[Blends]


def gather(run: Run, most: int = MOST) -> Curves:
    """Gather the curves of a run, of at most `most` points. What is no number in a record is left out."""
    records = [entry for entry in run.metrics if entry["split"] == "train"]
    averaged = max(1, -(-len(records) // most))
    columns = {name: np.array([number(entry.get(name)) for entry in records]) for name in FIGURES}
    validation = [
        Validation(
            ", ".join(setting.differences(run.own)),
            np.array(list(by_step), float),
            np.array([each.best_by for each in by_step.values()]),
        )
        for setting, by_step in run.evaluated.items()
        if by_step
    ]
    return Curves(
        steps=_means(np.array([entry["step"] for entry in records], float), averaged),
        figures={
            name: _means(values, averaged) for name, values in columns.items() if np.isfinite(values).any()
        },
        averaged=averaged,
        validation=validation,
        restarts=sorted({entry["step"] for entry in run.metrics if entry["split"] == "restart"}),
        compilations=[
            Compilation(entry["step"], str(entry.get("what")), seconds, entry.get("cached") is True)
            for entry in run.metrics
            if entry["split"] == "compile" and math.isfinite(seconds := number(entry.get("seconds")))
        ],
        blends=_blends(run, most),
    )


def _blends(run: Run, most: int) -> list[Blends]:
    """Gather the `blends` records of each compressor; those that lack a figure are left out."""
    compression = run.record.config.model.compression
    group = compression.group
    names = [f"{figure}_{frame}" for figure in ("mean", "std") for frame in range(1, group + 1)] + ["far"]
    found: dict[int, list[list[float]]] = {}
    for entry in run.metrics:
        if entry["split"] == "blends" and (block := entry.get("block")) in compression.compresses_after:
            values = [number(entry.get(name)) for name in names]
            if np.isfinite(values).all():
                found.setdefault(block, []).append([entry["step"], *values])
    curves = []
    for block, rows in sorted(found.items()):
        averaged = max(1, -(-len(rows) // most))
        columns = np.array([_means(column, averaged) for column in np.array(rows, float).T])
        (steps,), means, stds, (far,) = np.split(columns, [1, 1 + group, 1 + 2 * group])
        curves.append(Blends(block, steps, means, stds, far))
    return curves


def smoothed(values: Float[np.ndarray, " N"], weight: float = _WEIGHT) -> Float[np.ndarray, " N"]:
    """Smooth by an exponential moving average without a bias towards its start; NaN changes nothing."""
    total, share, result = 0.0, 0.0, np.full(len(values), np.nan)
    for place, value in enumerate(values.tolist()):
        if math.isfinite(value):
            total, share = weight * total + (1 - weight) * value, weight * share + (1 - weight)
        if share:
            result[place] = total / share
    return result


def number(value: Any) -> float:
    """Return a figure of a record as a float; NaN where it is no finite number."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and math.isfinite(value) else math.nan


def _means(values: Float[np.ndarray, " N"], count: int) -> Float[np.ndarray, " n"]:
    """Average each `count` consecutive values, of which the last may be fewer, without those that are NaN."""
    if count == 1:
        return values
    padded = np.append(values, np.full(-len(values) % count, np.nan)).reshape(-1, count)
    present = np.isfinite(padded)
    with np.errstate(invalid="ignore"):
        return np.where(present, padded, 0).sum(axis=1) / present.sum(axis=1)
