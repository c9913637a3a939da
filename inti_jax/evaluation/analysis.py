"""Analyse the predictions that runs keep: figures with intervals, by class and number of views; comparisons.

Nothing here needs a model or a video. The command is `inti_jax/evaluate.py`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float16, Int, Int32

from inti_jax.errors import UserError
from inti_jax.evaluation import metrics, statistics
from inti_jax.evaluation.statistics import Estimate, Outcome, Paired, Reliability, Signs
from inti_jax.host.names import printable
from inti_jax.runs import predictions
from inti_jax.runs.evaluations import Step, Weights
from inti_jax.runs.predictions import SavedPredictions

# Orders of the views over which figures by number of views are averaged, at most. Where videos have several
# labels they are fewer, since an average precision takes longer.
_ORDERS = 6
_ORDERS_OF_PRECISIONS = 3
_BLOCK = 1024  # videos at a time


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """The predictions of one evaluation, under the name of its run.

    Those of an `ensemble` have no step, weights and views of their own. `views` may be left out.
    """

    name: str
    saved: SavedPredictions
    views: Float16[np.ndarray, "M V K"] | None = None
    ensemble: bool = False


class ClassFigure(NamedTuple):
    """One class: its videos, and its accuracy with Wilson's interval, or its average precision."""

    name: str
    videos: int
    value: float
    low: float | None
    high: float | None


class OfViews(NamedTuple):
    """The mean figure of `views` of a video's views."""

    views: int
    value: float


@dataclasses.dataclass(frozen=True)
class Figures:
    """The figures of one evaluation.

    `main` names the figure that `by_views` and `classes` are of: top1, or map where videos have several
    labels. `figures` are estimates by the names in metrics.jsonl, with `nll` and `ece` beside them. `ece` has
    no interval: resampling raises it.
    """

    name: str
    dataset: str
    dataset_sha256: str
    step: int | None  # None, like the two that follow, for an ensemble
    weights: Weights | None
    views: str | None  # clips x crops
    main: Literal["top1", "map"]
    figures: dict[str, Estimate]
    nll: Estimate  # in nats
    ece: float
    reliability: Reliability
    classes: list[ClassFigure]  # those that have a video, in their order
    by_views: list[OfViews]  # empty where the views are not given, or are one
    evaluated: int
    missing: int


class ClassChange(NamedTuple):
    """One class on both sides. The last four are None where videos have several labels."""

    name: str
    videos: int
    first: float
    second: float
    better: int | None
    worse: int | None
    p: float | None
    q: float | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The second side less the first, on the videos that all runs of both have.

    `over_runs` is the difference with runs as units too, see `Paired.difference_over_runs`. `signs` is
    McNemar's exact test, see `Paired.signs`. Both are None where they are not defined.
    """

    first: list[str]
    second: list[str]
    main: Literal["top1", "map"]
    values: tuple[float, float]
    difference: Estimate
    over_runs: Estimate | None
    signs: Signs | None
    classes: list[ClassChange]  # in ascending order of the difference
    videos: int
    left_out: int


def load(path: Path, *, step: Step = None, weights: Weights | None = None, views: bool = False) -> Evaluated:
    """Read predictions from a run's directory, see `predictions.select`, or from one of its files.

    With `views`, those of single views are read too. Raises UserError where there are none.
    """
    file = path
    if path.suffix != ".npz" or path.is_dir():
        file = predictions.select(path, step, weights)
    saved = predictions.read(file)
    if file == path and (step not in (None, saved.step) or weights not in (None, saved.weights)):
        raise UserError(f"{path} is of step {saved.step} and {saved.weights} weights: name its run instead")
    if not saved.ids:
        raise UserError(f"{file} has no video that decoded")
    return Evaluated(printable(str(path)), saved, predictions.read_views(file) if views else None)


def summarize(evaluated: Evaluated) -> Figures:
    """Compute the figures of an evaluation."""
    saved = evaluated.saved
    if saved.multi_label:
        return _several_labels(evaluated)
    probabilities, labels = saved.probabilities, saved.labels
    rank = metrics.ranks(probabilities, labels)
    correct = rank == 0
    found = statistics.reliability(probabilities.max(axis=1), correct)
    classes = []
    for label in np.unique(labels).tolist():
        of_class = correct[labels == label]
        classes.append(ClassFigure(saved.classes[label], len(of_class), *statistics.proportion(of_class)))
    return Figures(
        **_facts(evaluated),
        main="top1",
        figures={
            "top1": statistics.proportion(correct),
            "top5": statistics.proportion(rank < 5),
            "mean_class": statistics.mean_class_accuracy(correct, labels),
        },
        nll=statistics.mean(statistics.negative_log_likelihood(probabilities, labels)),
        ece=found.error,
        reliability=found,
        classes=classes,
        by_views=_accuracy_by_views(evaluated, float(correct.mean())),
    )


def ensemble(members: Sequence[Evaluated]) -> Evaluated:
    """Average the probabilities of several evaluations of one dataset.

    Raises UserError where they are of different datasets, or where no video is in all of them.
    """
    first = members[0].saved
    for other in members[1:]:
        if other.saved.sha256 != first.sha256:
            raise UserError(
                f"{other.name} predicted dataset {other.saved.sha256[:8]} ({other.saved.dataset}) and "
                f"{members[0].name} {first.sha256[:8]} ({first.dataset}): an ensemble needs the same videos"
            )
        if other.saved.classes != first.classes or other.saved.multi_label != first.multi_label:
            raise UserError(f"{other.name} and {members[0].name} have different classes")
    common = _common(members)
    if not len(common):
        raise UserError("no video was evaluated by all runs of the ensemble")
    total = np.zeros((len(common), len(first.classes)), np.float64)
    for member in members:
        total += _rows(member.saved, common, member.saved.probabilities)
    rows = np.searchsorted(first.index, common)
    lost = [first.ids[row] for row in np.setdiff1d(np.arange(len(first.ids)), rows)]
    saved = dataclasses.replace(
        first,
        ids=tuple(first.ids[row] for row in rows),
        index=common,
        labels=first.labels[rows],
        probabilities=(total / len(members)).astype(np.float32),
        frames=first.frames[rows],
        missing=(*first.missing, *lost),
    )
    return Evaluated(f"ensemble of {len(members)}", saved, ensemble=True)


def compare(first: Sequence[Evaluated], second: Sequence[Evaluated]) -> Comparison:
    """Compare two sides on the same videos. A side has one run, or the runs of several seeds and folds.

    Raises UserError where the sides are of different datasets or classes, or have no video in common.
    """
    runs = [*first, *second]
    for run in runs[1:]:
        if run.saved.classes != runs[0].saved.classes or run.saved.multi_label != runs[0].saved.multi_label:
            raise UserError(f"{run.name} and {runs[0].name} have different classes, and do not compare")
    names = [run.name for run in first], [run.name for run in second]
    if runs[0].saved.multi_label:
        return _compare_precisions(first, second, names)
    try:
        paired = Paired([outcome(run.saved) for run in first], [outcome(run.saved) for run in second])
    except ValueError as error:
        raise UserError(f"{' and '.join(name for side in names for name in side)}: {error}") from None
    before, after = paired.values
    classes = [
        ClassChange(runs[0].saved.classes[row.label], row.videos, row.first, row.second, *row.signs, row.q)
        for row in paired.by_class()
    ]
    return Comparison(
        first=names[0],
        second=names[1],
        main="top1",
        values=(float(before.mean()), float(after.mean())),
        difference=paired.difference(),
        over_runs=paired.difference_over_runs(),
        signs=paired.signs(),
        classes=classes,
        videos=len(before),
        left_out=paired.left_out,
    )


def outcome(saved: SavedPredictions) -> Outcome:
    """Make the outcome of a run whose videos have one label each: 1 where it is the first."""
    rank = metrics.ranks(saved.probabilities, saved.labels)
    return Outcome(f"{saved.dataset} {saved.sha256[:8]}", saved.index, saved.labels, rank == 0)


def _several_labels(evaluated: Evaluated) -> Figures:
    """Compute the figures where videos have several labels. Calibration is that of all answers, yes or no."""
    saved = evaluated.saved
    probabilities, labels = saved.probabilities, saved.labels
    present = np.flatnonzero(labels.any(axis=0))
    precisions = statistics.Precisions(probabilities[:, present], labels[:, present])
    found = statistics.reliability(probabilities.ravel(), labels.ravel())
    by_class = precisions.by_class(np.ones((1, len(labels)), np.int64))[0].tolist()
    estimate = statistics.mean_average_precision(probabilities[:, present], labels[:, present])
    return Figures(
        **_facts(evaluated),
        main="map",
        figures={"map": estimate},
        nll=statistics.mean(statistics.negative_log_likelihood(probabilities, labels)),
        ece=found.error,
        reliability=found,
        classes=[
            ClassFigure(saved.classes[label], int(labels[:, label].sum()), value, None, None)
            for label, value in zip(present.tolist(), by_class, strict=True)
        ],
        by_views=_precision_by_views(evaluated, present, estimate.value),
    )


def _facts(evaluated: Evaluated) -> dict[str, Any]:
    """Give the fields of `Figures` that say what was evaluated."""
    saved = evaluated.saved
    return {
        "name": evaluated.name,
        "dataset": saved.dataset,
        "dataset_sha256": saved.sha256,
        "step": None if evaluated.ensemble else saved.step,
        "weights": None if evaluated.ensemble else saved.weights,
        "views": None if evaluated.ensemble else f"{saved.clips} x {saved.crops}",
        "evaluated": len(saved.ids),
        "missing": len(saved.missing),
    }


def _orders(views: int, most: int) -> Int[np.ndarray, "orders {views}"]:
    """Give some orders of the views: rotations of one random order, so that each view comes at all places."""
    order = np.random.default_rng(0).permutation(views)
    count = min(views, most)
    return np.stack([np.roll(order, -(number * views // count)) for number in range(count)])


def _accuracy_by_views(evaluated: Evaluated, exact: float) -> list[OfViews]:
    """Compute the mean top-1 of 1, 2, ... of the views; `exact` is that of all."""
    views, labels = evaluated.views, evaluated.saved.labels
    if views is None or views.shape[1] == 1:
        return []
    orders = _orders(views.shape[1], _ORDERS)
    right = np.zeros(views.shape[1], np.int64)
    for start in range(0, len(labels), _BLOCK):
        block = np.moveaxis(views[start : start + _BLOCK], 1, 0).astype(np.float32)
        for order in orders:
            total = np.zeros_like(block[0])
            for number, view in enumerate(order):
                total += block[view]
                right[number] += (total.argmax(axis=1) == labels[start : start + _BLOCK]).sum()
    values = [*(right / (len(orders) * len(labels))).tolist()[:-1], exact]
    return [OfViews(number, value) for number, value in enumerate(values, start=1)]


def _precision_by_views(evaluated: Evaluated, present: Int[np.ndarray, " K"], exact: float) -> list[OfViews]:
    """Compute the mean average precision of 1, 2, ... of the views; `exact` is that of all."""
    views, labels = evaluated.views, evaluated.saved.labels[:, present]
    if views is None or views.shape[1] == 1:
        return []
    orders = _orders(views.shape[1], _ORDERS_OF_PRECISIONS)
    values = np.zeros(views.shape[1])
    for order in orders:
        total = np.zeros(labels.shape, np.float32)
        for number, view in enumerate(order):
            total += views[:, view][:, present]
            values[number] += metrics.mean_average_precision(total, labels) / len(orders)
    return [OfViews(n, value) for n, value in enumerate([*values.tolist()[:-1], exact], start=1)]


def _compare_precisions(
    first: Sequence[Evaluated], second: Sequence[Evaluated], names: tuple[list[str], list[str]]
) -> Comparison:
    """Compare two sides whose videos have several labels. Their runs are of one dataset."""
    runs = [*first, *second]
    if any(run.saved.sha256 != runs[0].saved.sha256 for run in runs):
        raise UserError("runs with several labels a video compare on one dataset only")
    common = _common(runs)
    labels = _rows(runs[0].saved, common, runs[0].saved.labels)
    present = np.flatnonzero(labels.any(axis=0))
    if not len(present):
        raise UserError("no video with a label was evaluated by all runs")
    labels = labels[:, present]
    sides = [
        [_rows(run.saved, common, run.saved.probabilities)[:, present] for run in side]
        for side in (first, second)
    ]
    once = np.ones((1, len(common)), np.int64)
    before, after = (
        np.mean([statistics.Precisions(scores, labels).by_class(once)[0] for scores in side], axis=0)
        for side in sides
    )
    order = np.argsort(after - before, kind="stable").tolist()
    return Comparison(
        first=names[0],
        second=names[1],
        main="map",
        values=(float(before.mean()), float(after.mean())),
        difference=statistics.difference_of_precisions(sides[0], sides[1], labels),
        over_runs=None,
        signs=None,
        classes=[
            ClassChange(
                runs[0].saved.classes[present[place]],
                int(labels[:, place].sum()),
                float(before[place]),
                float(after[place]),
                None,
                None,
                None,
                None,
            )
            for place in order
        ],
        videos=len(common),
        left_out=len(set.union(*(set(run.saved.index.tolist()) for run in runs))) - len(common),
    )


def _common(runs: Sequence[Evaluated]) -> Int32[np.ndarray, " N"]:
    """Find the videos of one dataset that all runs evaluated."""
    return functools.reduce(np.intersect1d, (run.saved.index for run in runs))


def _rows(saved: SavedPredictions, index: Int[np.ndarray, " N"], values: np.ndarray) -> np.ndarray:
    """Take the rows of `values` that are of these videos."""
    return values[np.searchsorted(saved.index, index)]
