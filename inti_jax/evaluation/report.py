"""Write the page that compares runs: table, curves and configs. Each run also writes one for itself.

The command is `inti_jax/report.py`.
"""

import base64
import dataclasses
import html
import json
import logging
import math
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inti_jax import drawing
from inti_jax.cli import tables
from inti_jax.errors import UserError, naming
from inti_jax.host.names import printable
from inti_jax.runs import evaluations
from inti_jax.runs.evaluations import Evaluation, Setting
from inti_jax.runs.record import RunRecord
from inti_jax.runs.writers.jsonl import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("inti_jax")


_TIMED_BATCH = 16


_TIMED_ROUNDS = 7


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
    gmacs: float  # per view
    inference_clips: float | None  # per second, on this machine
    training_clips: float | None  # per second, over the whole run, input included; None if not trained
    parameters: int


def _per_second(clips: float | None) -> str:
    return "-" if clips is None else f"{clips:.0f}"


def _per_cent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


_COLUMNS = (
    ("run", lambda row: row.name),
    ("top-1", lambda row: _per_cent(row.top1)),
    ("top-5", lambda row: _per_cent(row.top5)),
    ("mAP", lambda row: _per_cent(row.map)),
    ("GMACs/view", lambda row: f"{row.gmacs:.4g}"),
    ("inference clips/s", lambda row: _per_second(row.inference_clips)),
    ("training clips/s", lambda row: _per_second(row.training_clips)),
    ("parameters", lambda row: f"{row.parameters:,}"),
)


def _number(figure: float) -> float | None:
    return None if math.isnan(figure) else figure


def _metrics_without_value(rows: Sequence[Summary]) -> tuple[str, ...]:
    """Name the columns of metrics that no run of the table is evaluated by: mAP, or else the accuracies."""
    if all(row.map is None for row in rows):
        return ("mAP",)
    return ("top-1", "top-5") if all(row.top1 is None for row in rows) else ()


def write_own(workdir: Path) -> None:
    """Write the report of a finished run to its directory.

    An error does not fail the run: it becomes one line in the log.
    """
    try:
        record = RunRecord.read(workdir)
        (name,) = _names([workdir]).values()
        write([workdir], workdir, f"{record.config.data.name}: {name}", timed=False)
    except Exception as error:
        reason = " ".join(str(error).split())
        log.warning("%s: the report could not be written (%s: %s)", workdir, type(error).__name__, reason)


def write(workdirs: Sequence[Path], out: Path, title: str, *, timed: bool) -> str:
    """Write report.html, curves.png and report.json to `out`, and return the table as text.

    With `timed`, each model's forward pass is timed on this machine, in turns. A picture that cannot be drawn
    is left out, with a warning. Raises UserError for a run that was never evaluated.
    """
    runs = [_read(workdir, name) for workdir, name in _names(workdirs).items()]
    speeds = _time_inference(runs) if timed else {}
    rows = [row for run in runs for row in _summarize(run, speeds.get(run.workdir))]
    picture = drawing.png(lambda pyplot: _curves(pyplot, runs), "the curves")
    left_out = _metrics_without_value(rows)
    columns = [(name, render) for name, render in _COLUMNS if name not in left_out]
    cells = [[render(row) for _, render in columns] for row in rows]
    headers = [name for name, _ in columns]
    notes = _notes(runs)
    for note in notes:
        log.warning("%s", note)

    out.mkdir(parents=True, exist_ok=True)
    table = json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n"
    page = _page(printable(title), headers, cells, notes, picture, runs)
    for name, content in (
        ("curves.png", picture),
        ("report.json", table.encode()),
        ("report.html", page.encode()),
    ):
        path = out / name
        if content is None:
            path.unlink(missing_ok=True)  # left by an earlier report
            continue
        partial = out / f"{name}.partial"
        with naming(partial):
            partial.write_bytes(content)
        partial.replace(path)
    return tables.text_table(headers, cells)


def final_step(workdir: Path, metrics: Iterable[dict[str, Any]]) -> int:
    """Find the last step of a run: that of its newest checkpoint, or else of its last record."""
    from inti_jax.runs import checkpoint  # late: it imports Orbax, and --help need not wait for it

    saved = checkpoint.steps(workdir)
    return saved[-1] if saved else max((entry["step"] for entry in metrics), default=0)


def _read(workdir: Path, name: str) -> Run:
    """Read a run from its directory. Raises UserError where it was never evaluated."""
    record, metrics, found = RunRecord.read(workdir), read_metrics(workdir), evaluations.read(workdir)
    if not found:
        raise UserError(f"{workdir} was not evaluated: run `python -m inti_jax.main --mode eval` on it")
    own = Setting.of_run(record)
    others = dict.fromkeys(each.setting for each in found if not own.includes(each.setting))
    by_setting = {setting: evaluations.by_step(found, setting) for setting in (own, *others)}
    final = final_step(workdir, metrics)
    return Run(workdir, name, record, metrics, final, by_setting)


def _notes(runs: Sequence[Run]) -> list[str]:
    """List the notes that the table needs: accuracies that are missing, or do not compare."""
    notes = [
        f"{run.name} was not evaluated at its last step, {run.final}, with the views and the dataset of its "
        "config: run `main --mode eval`."
        for run in runs
        if run.final not in run.evaluated[run.own]
    ]
    notes += [
        f"{run.name} is evaluated with the moving average of its weights (`train.ema`)."
        for run in runs
        if run.own.weights == "ema"
    ]
    first = runs[0]
    for run in runs[1:]:
        # An average is part of how a run was trained, and its accuracy compares with that of others.
        alike = dataclasses.replace(first.own, weights=run.own.weights)
        if differences := run.own.differences(alike):
            notes.append(
                f"{run.name} was evaluated differently from {first.name} ({', '.join(differences)}), so "
                "their accuracies are not comparable."
            )
    return notes


def _names(workdirs: Sequence[Path]) -> dict[Path, str]:
    """Name each directory, once, by the fewest last parts of its path that tell it from the others."""
    paths = {Path(os.path.abspath(workdir)): workdir for workdir in workdirs}  # noqa: PTH100 - links stay
    names = {}
    for path, workdir in paths.items():
        count = 1
        while count < len(path.parts) and any(
            other != path and other.parts[-count:] == path.parts[-count:] for other in paths
        ):
            count += 1
        names[workdir] = printable(str(Path(*path.parts[-count:])))
    return names


def _summarize(run: Run, speed: float | None) -> list[Summary]:
    """Make a run's rows: its own evaluation of its final step, then the last of each other kind."""
    from inti_jax.models import parameters
    from inti_jax.runs import state

    steps = [entry["step_seconds"] for entry in run.metrics if entry["split"] == "train"]
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
        gmacs=model.macs(run.record.config.data.num_frames) / 1e9,
        inference_clips=speed,
        training_clips=run.record.config.train.global_batch / statistics.median(steps) if steps else None,
        parameters=sum(math.prod(shape.shape) for shape in shapes),
    )
    rows = [] if run.final in run.evaluated[run.own] else [row]
    for by_step in run.evaluated.values():
        if by_step:
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


def _label(run: Run, found: Evaluation) -> str:
    """Label an evaluation: the run's name, and the differences from its own evaluation of its final step."""
    step = [] if found.step == run.final else [f"step {found.step}"]
    return ", ".join([run.name, *found.setting.differences(run.own), *step])


def _time_inference(runs: Sequence[Run]) -> dict[Path, float]:
    """Measure the clips a second of each run's model on one device: the median of rounds in turns.

    A run without a checkpoint, of which only the start was evaluated, is left out.
    """
    import numpy as np

    from inti_jax.evaluation.classifier import load
    from inti_jax.runs import checkpoint

    timed = [run for run in runs if checkpoint.steps(run.workdir)]
    models = {run.workdir: (run.record.config.data, load(run.workdir)) for run in timed}
    seconds: dict[Path, list[float]] = {workdir: [] for workdir in models}
    for _ in range(_TIMED_ROUNDS + 1):
        for workdir, (data, model) in models.items():
            shape = (_TIMED_BATCH, data.num_frames, *data.height_width, 3)
            video = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
            started = time.perf_counter()
            model(video)
            seconds[workdir].append(time.perf_counter() - started)
    # The first round compiles.
    return {workdir: _TIMED_BATCH / statistics.median(taken[1:]) for workdir, taken in seconds.items()}


def _curves(pyplot: Any, runs: Sequence[Run]) -> "Figure":
    figure, (loss, accuracy, speed) = pyplot.subplots(1, 3, figsize=(14, 3.6), layout="constrained")
    texts: dict[Any, dict[Any, str]] = {loss: {}, accuracy: {}, speed: {}}
    for number, run in enumerate(runs):
        train = [each for each in run.metrics if each["split"] == "train"]
        steps, colour = [each["step"] for each in train], f"C{number % 10}"
        if train:
            (line,) = loss.plot(steps, [each["loss"] for each in train], color=colour)
            texts[loss][line] = run.name
            (line,) = speed.plot(steps, [1000 * each["step_seconds"] for each in train], color=colour)
            texts[speed][line] = run.name
            waits = [1000 * each["step_seconds"] * each["data_wait"] for each in train]
            (line,) = speed.plot(steps, waits, color=colour, linestyle=":")
            texts[speed][line] = f"{run.name}, waiting for data"
        for setting, by_step in run.evaluated.items():
            if not by_step:
                continue
            (line,) = accuracy.plot(
                list(by_step),
                [100 * each.best_by for each in by_step.values()],
                color=colour,
                linestyle="-" if setting == run.own else "--",
                marker="o" if setting == run.own else "x",
                markersize=4,
            )
            texts[accuracy][line] = ", ".join([run.name, *setting.differences(run.own)])
    metric = " or ".join(
        dict.fromkeys("mAP" if run.record.config.train.multi_label else "top-1" for run in runs)
    )
    labels = ((loss, "training loss"), (accuracy, f"validation {metric} (%)"), (speed, "ms a step"))
    for axes, label in labels:
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        drawing.legend(axes, texts[axes])
    return figure


def _page(
    title: str,
    headers: list[str],
    cells: list[list[str]],
    notes: list[str],
    picture: bytes | None,
    runs: Sequence[Run],
) -> str:
    """Render the report as a page of HTML without other files."""
    head = "".join(f"<th>{html.escape(header)}</th>" for header in headers)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in cells
    )
    configs = "".join(
        f"<details><summary>{html.escape(run.name)}: config</summary><pre>"
        f"{html.escape(json.dumps(dataclasses.asdict(run.record), indent=2))}</pre></details>"
        for run in runs
    )
    if picture is None:
        curves = "<p>The curves could not be drawn.</p>"
    else:
        curves = (
            '<img alt="training loss, validation accuracy and time of a step, by step" '
            f'src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
        )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; }}
img {{ max-width: 100%; }}
</style>
<h1>{html.escape(title)}</h1>
<table><tr>{head}</tr>{body}</table>
<p>1 MAC is one multiply-accumulate. A view is one clip in one spatial crop. Inference is timed on random
frames in batches of {_TIMED_BATCH}, training over the whole run with its input. A run's name alone stands for
the evaluation of its last step with the views and the dataset of its config; others say what differs.</p>
{"".join(f"<p>{html.escape(note)}</p>" for note in notes)}
{curves}
{configs}
</html>
"""
