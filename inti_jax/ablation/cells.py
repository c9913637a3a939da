"""Train the cells of a table one after another, and keep what each predicted: a line of cells.jsonl a cell.

A cell whose line is there already is not trained again, so a table can be made in parts, on several machines,
and resumed.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pydantic

from inti_jax import config
from inti_jax.ablation.experiments import Experiment
from inti_jax.errors import UserError, naming
from inti_jax.host.files import write_whole
from inti_jax.host.paths import run_below

if TYPE_CHECKING:
    from inti_jax.cost.plan import Plan

log = logging.getLogger("inti_jax")


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a table. `fold` is None where the dataset has one split."""

    method: str
    compression: str
    fold: int | None
    seed: int
    steps: int

    @property
    def run_name(self) -> str:
        """The name of the run's directory."""
        fold = "" if self.fold is None else f"-fold{self.fold}"
        name = f"{self.method}-{self.compression}{fold}-seed{self.seed}-{self.steps}"
        return name.replace(" ", "_")


@dataclasses.dataclass(frozen=True)
class Cell:
    """The outcome of a run: each validation video's class and the class that was predicted, by its id."""

    job: Job
    config: str  # hash of the settings that decide what is computed
    dataset: str  # hash of the dataset
    gmacs: float  # per view, at inference
    share: float  # of the cost of the experiment's row without compression
    trained: int  # number of parameters that train
    labels: dict[str, str]
    predicted: dict[str, str]

    @property
    def correct(self) -> dict[str, bool]:
        """Tell for each video, by its id, whether it was classified correctly."""
        return {video: self.predicted[video] == label for video, label in self.labels.items()}

    @property
    def top1(self) -> float:
        """The share of videos that were classified correctly, from 0 to 1."""
        return sum(self.correct.values()) / len(self.labels)


_LINE = pydantic.TypeAdapter(Cell)


def jobs(
    experiment: Experiment,
    methods: Sequence[str],
    compressions: Sequence[str],
    folds: Sequence[int],
    seeds: Sequence[int],
    steps: int,
    *,
    equal_compute: bool = False,
) -> list[Job]:
    """List the wanted runs, the most important first.

    The experiment's `first` cells come before the others. Within both, seeds are the outer loop, then folds,
    so that a table that is stopped early compares all its rows on the same videos. With `equal_compute` a
    run has as many more steps than `steps` as its forward pass in training costs less than that without
    compression.
    """
    first_methods, first_compressions = experiment.first
    length = {
        (method, compression): round(steps * _compute_ratio(experiment, method, compression))
        if equal_compute
        else steps
        for method in methods
        for compression in compressions
    }
    wanted = [
        Job(method, compression, fold, seed, length[method, compression])
        for seed in seeds
        for fold in folds or (None,)
        for compression in compressions
        for method in methods
    ]
    return sorted(
        wanted, key=lambda job: job.method not in first_methods or job.compression not in first_compressions
    )


def _compute_ratio(experiment: Experiment, method: str, compression: str) -> float:
    """Divide the cost of the forward pass in training without compression by that with it."""
    costs = [_plan(experiment, method, name).gmacs_per_view_training for name in ("none", compression)]
    return costs[0] / costs[1]


def _plan(experiment: Experiment, method: str, compression: str) -> "Plan":
    from inti_jax.cost.plan import make_plan, record_of

    fold = experiment.folds[0] if experiment.folds else None
    spec = experiment.spec(method, compression, fold, seed=0, steps=1)
    settings = config.load_config(f"{config.recipes()[experiment.recipe]}:{spec}")
    return make_plan(record_of(settings, classes=10))[0]


def train_all(
    experiment: Experiment, wanted: Sequence[Job], backbone: str, data_dir: Path | str, out: Path
) -> None:
    """Train and evaluate each run in a directory of `out`, and append its line to cells.jsonl there.

    Runs that have a line already are left out. Raises UserError where such a line is of other settings.
    """
    known = {cell.job: cell for cell in read(out)}
    for number, job in enumerate(wanted, start=1):
        spec = experiment.spec(job.method, job.compression, job.fold, job.seed, job.steps)
        overrides = {"model.pretrained": backbone, "data.data_dir": data_dir}
        settings = config.load_config(
            f"{config.recipes()[experiment.recipe]}:{spec}",
            [f"--config.{key}={value}" for key, value in overrides.items()],
        )
        if job in known:
            if known[job].config != _hash(settings):
                raise UserError(
                    f"{cells_path(out)}: the line of {job.run_name} is of other settings than the recipe's: "
                    "choose another --out, or delete the line"
                )
            continue
        log.info("run %d of %d: %s", number, len(wanted), job.run_name)
        known[job] = _train(experiment, job, settings, run_below(out, job.run_name))
        _write(out, list(known.values()))


def cells_path(out: Path) -> Path:
    """Return the path of the file of all finished cells."""
    return out / "cells.jsonl"


def read(out: Path) -> list[Cell]:
    """Read the finished cells in `out`. A last line that a kill cut short is left out.

    Raises UserError for any other line that is no cell.
    """
    path = cells_path(out)
    if not path.exists():
        return []
    with naming(path):
        lines = path.read_text(errors="replace").split("\n")[:-1]
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(_LINE.validate_json(line))
        except pydantic.ValidationError:
            raise UserError(f"{path}: line {number} is no cell of a table: delete it") from None
    return found


def _write(out: Path, cells: Sequence[Cell]) -> None:
    """Write the lines of all finished cells, all of them or none."""
    write_whole(cells_path(out), "".join(_LINE.dump_json(cell).decode() + "\n" for cell in cells))


def _hash(settings: config.Config) -> str:
    """Hash the settings that decide what a run computes, which leaves out where its files are."""
    from inti_jax.runs import record

    return hashlib.sha256(json.dumps(record.fixed(settings), sort_keys=True).encode()).hexdigest()[:16]


def _train(experiment: Experiment, job: Job, settings: config.Config, workdir: Path) -> Cell:
    """Train and evaluate the run in `workdir`, or take up the one that was begun there."""
    from inti_jax.runs import predictions
    from inti_jax.runs.evaluations import Setting
    from inti_jax.runs.record import RunRecord
    from inti_jax.training import loop

    loop.train(settings, workdir)
    found = RunRecord.read(workdir)
    saved = predictions.read(predictions.Place.of(job.steps, Setting.of_run(found)).path(workdir))
    plan, uncompressed = (_plan(experiment, job.method, name) for name in (job.compression, "none"))
    best = saved.probabilities.argmax(axis=1)
    return Cell(
        job=job,
        config=_hash(settings),
        dataset=found.dataset.sha256,
        gmacs=plan.gmacs_per_view,
        share=plan.gmacs_per_view / uncompressed.gmacs_per_view,
        trained=plan.params_trainable,
        labels=dict(zip(saved.ids, (saved.classes[k] for k in saved.labels), strict=True)),
        predicted=dict(zip(saved.ids, (saved.classes[k] for k in best), strict=True)),
    )
