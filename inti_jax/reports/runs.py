"""Read runs from their directories, and summarize their evaluations as the rows of a table."""

import dataclasses
import math
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from inti_jax.cli import tables
from inti_jax.cli.tables import Table
from inti_jax.errors import UserError
from inti_jax.evaluation import analysis
from inti_jax.evaluation.analysis import Evaluated
from inti_jax.host.names import printable
from inti_jax.runs import evaluations
from inti_jax.runs.evaluations import Evaluation, Setting
from inti_jax.runs.record import RunRecord
from inti_jax.runs.writers.jsonl import read_metrics


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as read from its directory: record, metrics, and evaluations by setting and step.

    The first setting is the run's own, which may have no evaluations. `final` is the step of the newest
    checkpoint, or the last step of the metrics where there are no checkpoints.
    """

    workdir: Path
    name: str
    record: RunRecord
    metrics: list[dict[str, Any]]
    final: int
    evaluated: dict[Setting, dict[int, Evaluation]]

    @property
    def own(self) -> Setting:
        """The run's own setting, under which it evaluates itself."""
        return next(iter(self.evaluated))

    @property
    def metric(self) -> str:
        """The figure that the run is judged by."""
        return "mAP" if self.record.config.train.multi_label else "top-1"


@dataclasses.dataclass(frozen=True)
class Summary:
    """One row of the table: an evaluation of a run.

    For the run's own evaluation of its final step `name` is the run's name. For other evaluations it also
    says what differs. Accuracies are None where the run has no such evaluation, and `inference_clips` is None
    where it was not timed.
    """

    name: str
    step: int
    views: int | None
    dataset: str | None
    top1: float | None
    top5: float | None
    map: float | None  # where videos have several labels, in place of the two accuracies
    gmacs: float  # per view, at inference
    inference_clips: float | None  # per second, on this machine
    training_clips: float | None  # per second, over the whole run, input included; None if not trained
    parameters: int


def _per_second(clips: float | None) -> str:
    return "-" if clips is None else f"{clips:.0f}"


def _per_cent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


class _Column(NamedTuple):
    """A column of the table: the attribute of a row that it shows, and whether low values are good."""

    header: str
    attribute: str
    render: Callable[[Any], str]
    lowest: bool = False


_COLUMNS = (
    _Column("run", "name", str),
    _Column("top-1", "top1", _per_cent),
    _Column("top-5", "top5", _per_cent),
    _Column("mAP", "map", _per_cent),
    _Column("GMACs/view", "gmacs", lambda gmacs: f"{gmacs:.4g}", lowest=True),
    _Column("inference clips/s", "inference_clips", _per_second),
    _Column("training clips/s", "training_clips", _per_second),
    _Column("parameters", "parameters", lambda count: f"{count:,}", lowest=True),
)


def table(rows: Sequence[Summary]) -> Table:
    """Format the table. Metrics that no row is evaluated by have no column."""
    if all(row.map is None for row in rows):
        left_out: tuple[str, ...] = ("mAP",)
    else:
        left_out = ("top-1", "top-5") if all(row.top1 is None for row in rows) else ()
    columns = [column for column in _COLUMNS if column.header not in left_out]
    values = [[getattr(row, column.attribute) for row in rows] for column in columns]
    best = [
        tables.best(values[place], place, lowest=column.lowest)
        for place, column in enumerate(columns)
        if place > 0
    ]
    return Table(
        [column.header for column in columns],
        [
            [column.render(of[row]) for column, of in zip(columns, values, strict=True)]
            for row in range(len(rows))
        ],
        set().union(*best),
    )


def final_step(workdir: Path, metrics: Iterable[dict[str, Any]]) -> int:
    """Find the last step of a run: that of its newest checkpoint, or else of its last record."""
    from inti_jax.runs import checkpoint  # late: it imports Orbax, and --help need not wait for it

    saved = checkpoint.steps(workdir)
    return saved[-1] if saved else max((entry["step"] for entry in metrics), default=0)


def read(workdirs: Sequence[Path]) -> list[Run]:
    """Read runs from their directories, each once, under names that tell them apart.

    Raises ConfigError for a directory that holds no run, and UserError for records that cannot be read.
    """
    return [_read(workdir, name) for workdir, name in names(workdirs).items()]


def _read(workdir: Path, name: str) -> Run:
    record, metrics, found = RunRecord.read(workdir), read_metrics(workdir), evaluations.read(workdir)
    own = Setting.of_run(record)
    others = dict.fromkeys(each.setting for each in found if not own.includes(each.setting))
    by_setting = {setting: evaluations.by_step(found, setting) for setting in (own, *others)}
    final = final_step(workdir, metrics)
    return Run(workdir, name, record, metrics, final, by_setting)


def predictions(run: Run, *, views: bool = False) -> tuple[Evaluated | None, str | None]:
    """Read the predictions of a run's own evaluation, or say in a line why there are none.

    With `views`, those of single views are read too.
    """
    try:
        found = analysis.load(run.workdir, views=views)
    except (UserError, OSError) as error:
        return None, f"{' '.join(str(error).split())}."
    if found.saved.sha256 != run.own.dataset:
        return None, (
            f"The predictions of {run.name} are of another dataset, {found.saved.dataset} "
            f"({found.saved.sha256[:8]}), and are left out."
        )
    return found, None


def names(workdirs: Sequence[Path]) -> dict[Path, str]:
    """Name each directory, once, by the fewest last parts of its path that tell it from the others."""
    paths = {Path(os.path.abspath(workdir)): workdir for workdir in workdirs}  # noqa: PTH100 - links stay
    found = {}
    for path, workdir in paths.items():
        count = 1
        while count < len(path.parts) and any(
            other != path and other.parts[-count:] == path.parts[-count:] for other in paths
        ):
            count += 1
        found[workdir] = printable(str(Path(*path.parts[-count:])))
    return found


def notes(runs: Sequence[Run]) -> list[str]:
    """List the notes that the table needs: accuracies that are missing, or do not compare."""
    found = []
    for run in runs:
        if not any(run.evaluated.values()):
            found.append(f"{run.name} was not evaluated: run `python -m inti_jax.main --mode eval` on it.")
        elif run.final not in run.evaluated[run.own]:
            found.append(
                f"{run.name} was not evaluated at its last step, {run.final}, with the views and the dataset "
                "of its config: run `python -m inti_jax.main --mode eval` on it."
            )
    found += [
        f"{run.name} is evaluated with the moving average of its weights (`train.ema`)."
        for run in runs
        if run.own.weights == "ema"
    ]
    first = runs[0]
    for run in runs[1:]:
        # An average is part of how a run was trained, and its accuracy compares with that of others.
        alike = dataclasses.replace(first.own, weights=run.own.weights)
        if differences := run.own.differences(alike):
            found.append(
                f"{run.name} was evaluated differently from {first.name} ({', '.join(differences)}), so "
                "their accuracies are not comparable."
            )
    return found


def summarize(run: Run, speed: float | None) -> list[Summary]:
    """Make a run's rows: its own evaluation of its final step, then the last of each other kind.

    `speed` is the number of clips a second at inference, where it was measured.
    """
    from inti_jax.models import parameters
    from inti_jax.runs import state

    steps = [seconds for each in run.metrics if (seconds := _step_seconds(each)) is not None]
    model = state.abstract_model(run.record)
    shapes = parameters.parameter_shapes(model).values()
    row = Summary(
        name=run.name,
        step=run.final,
        views=run.own.views,
        dataset=run.own.dataset,
        top1=None,
        top5=None,
        map=None,
        gmacs=model.macs(run.record.config.data.num_frames, folded=True) / 1e9,
        inference_clips=speed,
        training_clips=run.record.config.train.global_batch / statistics.median(steps) if steps else None,
        parameters=sum(math.prod(shape.shape) for shape in shapes),
    )
    rows = [] if run.final in run.evaluated[run.own] else [row]
    for setting, by_step in run.evaluated.items():
        if by_step and setting.subset is None:  # those of some videos are points of the curve alone
            last = by_step[run.final] if run.final in by_step else by_step[max(by_step)]
            rows.append(
                dataclasses.replace(
                    row,
                    name=_label(run, last),
                    step=last.step,
                    views=last.setting.views,
                    dataset=last.setting.dataset,
                    top1=_number(last.top1),
                    top5=_number(last.top5),
                    map=_number(last.map),
                )
            )
    return rows


def _step_seconds(entry: dict[str, Any]) -> float | None:
    """Return the duration of a step from a record; None where it says none."""
    seconds = entry.get("step_seconds") if entry["split"] == "train" else None
    return float(seconds) if isinstance(seconds, int | float) and seconds > 0 else None


def _number(figure: float) -> float | None:
    return None if math.isnan(figure) else figure


def _label(run: Run, found: Evaluation) -> str:
    """Label an evaluation: the run's name, and the differences from its own evaluation of its final step."""
    step = [] if found.step == run.final else [f"step {found.step}"]
    return ", ".join([run.name, *found.setting.differences(run.own), *step])
