"""Put together the page of one run."""

import itertools
import json
import math
from typing import NamedTuple

from markupsafe import Markup

from inti_jax import pages
from inti_jax.errors import UserError
from inti_jax.evaluation import analysis
from inti_jax.evaluation.analysis import Figures
from inti_jax.evaluation.statistics import Estimate
from inti_jax.reports import clips, confusions, costs, curves, runs, settings, speed
from inti_jax.reports.charts import chart, training
from inti_jax.reports.charts import cost as cost_charts
from inti_jax.reports.charts import predictions as prediction_charts
from inti_jax.reports.charts.chart import Chart
from inti_jax.reports.confusions import Confusions
from inti_jax.reports.runs import Run
from inti_jax.runs.predictions import SavedPredictions

_TAKEN = 3  # classes that a class is confused with, in its row
_MISSING = 20  # ids of videos that did not decode


class Tile(NamedTuple):
    """A figure at the head of the page."""

    label: str
    value: str
    more: str


class ClassRow(NamedTuple):
    """A class in the table: its figures, and the classes that it is confused with, as text."""

    name: str
    videos: int
    value: str
    interval: str
    taken_for: str
    taken_for_it: str


def render(run: Run, title: str, clips_a_second: float | None) -> str:
    """Render the page of a run. `clips_a_second` is the speed of inference, where it was measured.

    What cannot be read, or is not there, becomes a line on it.
    """
    found, problem = runs.predictions(run, views=True)
    figures = None if found is None else analysis.summarize(found)
    matrix = None if found is None or found.saved.multi_label else confusions.count(found.saved)
    shown = None if found is None else _clips(run, found.saved)
    cost = costs.compute(run.record)
    curve = curves.gather(run)
    rows = runs.summarize(run, clips_a_second)
    table = runs.table(rows)
    drawn_curves = training.of_run(curve, run.metric)
    drawn = [] if figures is None else _of_predictions(figures, matrix, run.metric)
    drawn_cost = cost_charts.of_blocks(cost)
    return pages.render(
        "run.html",
        title=title,
        tiles=_tiles(run, figures, cost, rows[0]),
        notes=runs.notes([run]),
        curves=drawn_curves,
        curve_notes=_curve_notes(run, curve, drawn_curves),
        compilations=[
            [
                each.what,
                str(each.step),
                f"{each.seconds:.1f}",
                "from the cache" if each.cached else "compiled",
            ]
            for each in curve.compilations
        ],
        prediction_notes=[] if problem is None else [problem],
        predictions=drawn,
        figures=[] if figures is None else _figures(figures),
        predictions_of=None if figures is None else _source(figures, run),
        classes=[] if figures is None else _classes(figures, matrix),
        metric="average precision" if run.metric == "mAP" else "accuracy",
        intervals=matrix is not None,
        clips=None if shown is None else shown.groups,
        clip_notes=[] if shown is None else shown.notes,
        cost=drawn_cost,
        timing=speed.note(clips_a_second is not None),
        headers=table.headers,
        rows=table.rows,
        changes=settings.changes(run.record.config),
        record=json.dumps(run.record.to_json(), indent=2),
        charts=chart.document([*drawn_curves, *drawn, drawn_cost]),
        data={} if shown is None else {"videos": clips.as_json(shown.listed)},
        library=Markup(chart.library()),
    )


_GROUPS: tuple[tuple[clips.Group, str, str, str], ...] = (
    (
        "worst",
        "Worst errors",
        "The wrong answers with the largest probability.",
        "The largest negative log-likelihood of the labels.",
    ),
    (
        "unsure",
        "Least sure",
        "The two best labels are closest.",
        "The largest entropy of the answers.",
    ),
    ("random", "At random", "Drawn from the others.", "Drawn from the others."),
)


class Shown(NamedTuple):
    """The videos of the page by group (its title, a line, its videos), those to search, and notes."""

    groups: list[tuple[str, str, list[clips.Video]]]
    listed: clips.Listed
    notes: list[str]


def _clips(run: Run, saved: SavedPredictions) -> Shown:
    """Choose the videos to show, with their frames where the dataset is there."""
    notes, chosen = [], clips.choose(saved)
    found = {group: clips.videos(saved, rows) for group, rows in chosen.items()}
    try:
        with_strips = clips.with_strips(
            [video for group in found.values() for video in group],
            saved,
            run.record.config,
            clips.open_source(run.record.config, saved),
        )
        found = {group: list(itertools.islice(with_strips, len(rows))) for group, rows in chosen.items()}
    except (UserError, OSError) as error:
        notes.append(f"Frames are not shown: {' '.join(str(error).split())}.")
    if saved.missing:
        some = ", ".join(saved.missing[:_MISSING])
        more = len(saved.missing) - _MISSING
        notes.append(
            f"{len(saved.missing)} videos did not decode: {some}{f' and {more} more' if more > 0 else ''}."
        )
    listed = clips.listed(saved)
    if listed.left_out:
        notes.append(f"The search leaves out the last {listed.left_out:,} videos, to keep the page small.")
    groups = [
        (title, several if saved.multi_label else one, found[group]) for group, title, one, several in _GROUPS
    ]
    return Shown(groups, listed, notes)


def _tiles(run: Run, figures: Figures | None, cost: costs.Cost, row: runs.Summary) -> list[Tile]:
    tiles = []
    if figures is not None:
        main = figures.figures[figures.main]
        tiles.append(Tile(run.metric, _per_cent(main.value), f"{_interval(main)} %"))
        if "top5" in figures.figures:
            top5 = figures.figures["top5"]
            tiles.append(Tile("top-5", _per_cent(top5.value), f"{_interval(top5)} %"))
        tiles.append(Tile("calibration error", _per_cent(figures.ece), "ECE of 15 bins"))
        tiles.append(
            Tile("videos", f"{figures.evaluated:,}", f"{figures.views} views, {figures.missing} missing")
        )
    else:
        value = row.map if run.metric == "mAP" else row.top1
        if value is not None:
            tiles.append(Tile(run.metric, _per_cent(value), f"step {row.step}"))
    tiles.append(Tile("GMACs per view", f"{cost.gmacs:.4g}", f"{100 * cost.share:.0f} % of uncompressed"))
    tiles.append(Tile("parameters", _short(cost.parameters), f"{_short(cost.trained)} trained"))
    if row.inference_clips is not None:
        tiles.append(Tile("inference", f"{row.inference_clips:.0f}/s", "clips, on this machine"))
    if row.training_clips is not None:
        tiles.append(Tile("training", f"{row.training_clips:.0f}/s", "clips, input included"))
    tiles.append(Tile("steps", f"{run.final:,}", f"{run.record.config.train.global_batch} clips each"))
    return tiles


def _curve_notes(run: Run, found: curves.Curves, drawn: list[Chart]) -> list[str]:
    notes = []
    records = [entry for entry in run.metrics if entry["split"] == "train"]
    if not records:
        notes.append(f"{run.name} has no records of training.")
    elif not drawn:
        notes.append(f"The records of training of {run.name} have no numbers to draw.")
    bad = sum(
        name in entry and math.isnan(curves.number(entry[name]))
        for entry in records
        for name in curves.FIGURES
    )
    if bad:
        notes.append(f"{bad} values in the records of training are no finite numbers, and are left out.")
    if found.averaged > 1:
        notes.append(f"Each point of a curve of training is the mean of {found.averaged} records.")
    return notes


def _of_predictions(figures: Figures, matrix: Confusions | None, metric: str) -> list[Chart]:
    found = []
    if matrix is not None:
        found.append(prediction_charts.of_confusions(matrix))
        confidence, of_class = "the largest probability of a video", "accuracy"
    else:
        confidence, of_class = "the probability of yes, of each class of each video", "average precision"
    found.append(prediction_charts.of_classes(figures.classes, figures.figures[figures.main].value, of_class))
    found.append(prediction_charts.of_reliability(figures.reliability, confidence))
    if figures.by_views:
        found.append(prediction_charts.of_views(figures.by_views, metric))
    return found


def _source(figures: Figures, run: Run) -> str:
    late = "" if figures.step == run.final else f", while the run's last step is {run.final}"
    return (
        f"Step {figures.step}{late}: {figures.evaluated:,} validation videos of {figures.dataset}, "
        f"{figures.views} views each, {figures.missing} more that do not decode"
    )


_NAMES = {
    "top1": "top-1 (%)",
    "top5": "top-5 (%)",
    "mean_class": "mean of the classes' accuracies (%)",
    "map": "mAP (%)",
}


def _figures(figures: Figures) -> list[list[str]]:
    rows = [
        [_NAMES[name], f"{100 * found.value:.1f}", _interval(found)]
        for name, found in figures.figures.items()
    ]
    nll = figures.nll
    rows.append(["negative log-likelihood (nats)", f"{nll.value:.3f}", f"{nll.low:.3f} to {nll.high:.3f}"])
    rows.append(["expected calibration error (%)", f"{100 * figures.ece:.1f}", ""])
    return rows


def _classes(figures: Figures, matrix: Confusions | None) -> list[ClassRow]:
    """Make the rows of the table of classes, in ascending order of their figures."""
    taken_for: dict[str, list[str]] = {}
    taken_for_it: dict[str, list[str]] = {}
    if matrix is not None:
        for entry in matrix.errors():
            label, predicted = matrix.classes[entry.label], matrix.classes[entry.predicted]
            taken_for.setdefault(label, []).append(f"{predicted} ({entry.videos})")
            taken_for_it.setdefault(predicted, []).append(f"{label} ({entry.videos})")
    return [
        ClassRow(
            each.name,
            each.videos,
            f"{100 * each.value:.1f}",
            "" if each.low is None or each.high is None else f"{100 * each.low:.1f} to {100 * each.high:.1f}",
            "; ".join(taken_for.get(each.name, [])[:_TAKEN]),
            "; ".join(taken_for_it.get(each.name, [])[:_TAKEN]),
        )
        for each in sorted(figures.classes, key=lambda each: (each.value, each.name))
    ]


def _per_cent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(found: Estimate) -> str:
    return f"{100 * found.low:.1f} to {100 * found.high:.1f}"


def _short(number: int) -> str:
    """Write a count with three digits and a unit: 86.4 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
