"""Estimate what an evaluation says, and how sure it is: intervals, calibration, and paired comparisons.

Everything here is a function of arrays. Intervals have a confidence of `LEVEL`. Those that are resampled are
the bootstrap's percentiles, with videos as units (Efron and Tibshirani, 1993, chapter 13). They say how the
figure varies with the choice of the validation videos. Draws are seeded: equal arrays have equal intervals.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

LEVEL = 0.95
RESAMPLES = 2000
BINS = 15

# Numbers that are drawn at a time, which bounds the memory of a bootstrap.
_AT_ONCE = 2**22


class Estimate(NamedTuple):
    """A figure with its interval."""

    value: float
    low: float
    high: float


def proportion(hits: Bool[np.ndarray, " M"]) -> Estimate:
    """Estimate a share of independent videos, with Wilson's score interval (Wilson, 1927)."""
    share, videos, z = float(hits.mean()), len(hits), NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle = (share + z**2 / (2 * videos)) / (1 + z**2 / videos)
    half = z / (1 + z**2 / videos) * math.sqrt(share * (1 - share) / videos + z**2 / (4 * videos**2))
    # Of no hits and of hits alone the bounds are exact, which rounding would miss.
    return Estimate(share, 0.0 if share == 0 else middle - half, 1.0 if share == 1 else middle + half)


def resampled(
    statistic: Callable[[Int[np.ndarray, "R M"]], Float[np.ndarray, " R"]],
    videos: int,
    *,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Estimate a statistic of M = `videos` videos, with its bootstrap interval.

    `statistic` maps rows of indices of videos to its value for each row.
    """
    draws = [statistic(indices) for indices in _resamples(videos, resamples)]
    return _interval(float(statistic(np.arange(videos)[None])[0]), np.concatenate(draws))


def mean(values: Float[np.ndarray, " M"]) -> Estimate:
    """Estimate the mean of a number that each video has."""
    return resampled(lambda indices: values[indices].mean(axis=1), len(values))


def mean_class_accuracy(correct: Bool[np.ndarray, " M"], labels: Int[np.ndarray, " M"]) -> Estimate:
    """Estimate the mean over classes of their accuracies; of a resample, over the classes that it has."""
    classes = int(labels.max()) + 1

    def of_resamples(indices: Int[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        cells = labels[indices] + classes * np.arange(len(indices))[:, None]
        size = len(indices) * classes
        count = np.bincount(cells.ravel(), minlength=size)
        right = np.bincount(cells.ravel(), correct[indices].ravel(), minlength=size)
        with np.errstate(invalid="ignore"):
            return np.nanmean((right / count).reshape(len(indices), classes), axis=1)

    return resampled(of_resamples, len(labels))


class Precisions:
    """The average precisions of classes, for resampled videos; see `metrics.mean_average_precision`.

    Scores are sorted once. Each resample then says how often a video counts.
    """

    def __init__(self, scores: Float[np.ndarray, "M K"], labels: Bool[np.ndarray, "M K"]):
        """Take the scores of the videos, and which of the classes each has."""
        self._labels = labels
        self._order = np.argsort(-scores, axis=0, kind="stable")
        ordered = np.take_along_axis(scores, self._order, axis=0)
        # Videos with equal scores pass a threshold together, with the last of them.
        self._ends = [np.flatnonzero(np.append(np.diff(column) != 0, True)) for column in ordered.T]

    def by_class(self, counts: Int[np.ndarray, "R M"]) -> Float[np.ndarray, "R K"]:
        """Compute the average precision of each class; NaN where a resample has no video of it."""
        columns = []
        for order, ends, labels in zip(self._order.T, self._ends, self._labels.T, strict=True):
            ordered = counts[:, order]
            passed = np.cumsum(ordered, axis=1)[:, ends]
            right = np.cumsum(ordered * labels[order], axis=1)[:, ends]
            gained = np.diff(right, axis=1, prepend=0)
            with np.errstate(invalid="ignore"):
                precision = np.where(passed > 0, right / np.maximum(passed, 1), 0)
                columns.append((precision * gained).sum(axis=1) / right[:, -1])
        return np.stack(columns, axis=1)

    def mean(self, indices: Int[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        """Compute the mean over the classes that each resample has."""
        return np.nanmean(self.by_class(_counts(indices)), axis=1)


def mean_average_precision(scores: Float[np.ndarray, "M K"], labels: Bool[np.ndarray, "M K"]) -> Estimate:
    """Estimate the mean of the classes' average precisions; each class has a video at least."""
    return resampled(Precisions(scores, labels).mean, len(scores), resamples=RESAMPLES // 4)


# Calibration.


class Reliability(NamedTuple):
    """The accuracy of the answers in each bin of confidence; means of empty bins are NaN."""

    edges: Float[np.ndarray, " bins+1"]
    answers: Int[np.ndarray, " bins"]  # their number
    confidence: Float[np.ndarray, " bins"]  # the mean
    accuracy: Float[np.ndarray, " bins"]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean distance of accuracy and confidence over all answers."""
        filled = self.answers > 0
        distance = np.abs(self.accuracy - self.confidence)[filled]
        return float((distance * self.answers[filled]).sum() / self.answers.sum())


def reliability(
    confidence: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"], *, bins: int = BINS
) -> Reliability:
    """Sort N answers into `bins` bins of equal width by their confidence (arXiv:1706.04599).

    A bin has its upper edge and not its lower one.
    """
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [
            np.bincount(place, np.asarray(values, np.float64), minlength=bins) / count
            for values in (confidence, correct)
        ]
    return Reliability(edges, count, *means)


def negative_log_likelihood(
    probabilities: Float[np.ndarray, "M K"], labels: Int[np.ndarray, " M"] | Bool[np.ndarray, "M K"]
) -> Float[np.ndarray, " M"]:
    """Compute the negative log of the probability of each video's label, in nats.

    Where videos have several labels it is the mean over the classes of those of both answers. A probability
    of 0 counts as the smallest float32.
    """
    tiny = float(np.finfo(np.float32).tiny)
    if labels.ndim == 1:
        own = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
        return -np.log(np.maximum(own.astype(np.float64), tiny))
    answered = np.where(labels, probabilities.astype(np.float64), 1 - probabilities.astype(np.float64))
    return -np.log(np.maximum(answered, tiny)).mean(axis=1)


# Comparison of two sides, each of one run or several.


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of one run on the videos of one dataset; video i is `ids[i]`, and ids are unique."""

    dataset: Hashable
    ids: np.ndarray
    labels: Int[np.ndarray, " M"]
    correct: Float[np.ndarray, " M"] | Bool[np.ndarray, " M"]


class Block(NamedTuple):
    """The videos of one dataset that all runs of both sides have: a row for each run."""

    dataset: Hashable
    labels: Int[np.ndarray, " N"]
    first: Float[np.ndarray, "S N"]
    second: Float[np.ndarray, "T N"]


class Signs(NamedTuple):
    """The number of videos on which the second side does better, and worse, and the p-value."""

    better: int
    worse: int
    p: float


class ClassDifference(NamedTuple):
    """One class on both sides. `q` is its p-value, adjusted for the number of classes."""

    label: int
    videos: int
    first: float
    second: float
    signs: Signs
    q: float


class Paired:
    """Two sides on the same videos: seeds are runs of the same dataset, folds are runs of different ones.

    A video's value on a side is its mean over the runs there. `left_out` counts the videos that a run lacks.
    """

    def __init__(self, first: Iterable[Outcome], second: Iterable[Outcome]):
        """Pair the sides. Raises ValueError where a dataset is on one side alone, or has no common video."""
        sides = [_by_dataset(first), _by_dataset(second)]
        if sides[0].keys() != sides[1].keys() or not sides[0]:
            raise ValueError("the two sides have runs on different datasets")
        self.left_out = 0
        self.blocks: list[Block] = []
        for dataset, runs in sides[0].items():
            others = sides[1][dataset]
            common = runs[0].ids
            for run in (*runs, *others):
                common = np.intersect1d(common, run.ids)
            if not len(common):
                raise ValueError(f"the runs on {dataset} have no video in common")
            everything = np.unique(np.concatenate([run.ids for run in (*runs, *others)]))
            self.left_out += len(everything) - len(common)
            rows, other_rows = (np.stack([_of(run, common) for run in side]) for side in (runs, others))
            labels = [_labels(run, common) for run in (*runs, *others)]
            if any((each != labels[0]).any() for each in labels):
                raise ValueError(f"the runs on {dataset} have different labels for the same videos")
            self.blocks.append(Block(dataset, labels[0], rows, other_rows))

    @property
    def labels(self) -> Int[np.ndarray, " N"]:
        """The labels of the videos, dataset by dataset."""
        return np.concatenate([block.labels for block in self.blocks])

    @property
    def values(self) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
        """The value of each video on the first and on the second side."""
        return (
            np.concatenate([block.first.mean(axis=0) for block in self.blocks]),
            np.concatenate([block.second.mean(axis=0) for block in self.blocks]),
        )

    @property
    def differences(self) -> Float[np.ndarray, " N"]:
        """The value of each video on the second side less that on the first."""
        first, second = self.values
        return second - first

    def difference(self) -> Estimate:
        """Estimate the mean difference, with videos as units and the runs as they are.

        The interval does not say how the difference would vary with other seeds.
        """
        return mean(self.differences)

    def difference_over_runs(self) -> Estimate | None:
        """Estimate the mean difference with videos and runs as units: both are resampled.

        The two are crossed, so that each resample takes all videos of a dataset from the same runs (Owen,
        2007, "The pigeonhole bootstrap"). With few runs a side it still says too little: two or three seeds
        hide a half or a third of their variance. None where no dataset has several runs on a side.
        """
        if all(len(block.first) == len(block.second) == 1 for block in self.blocks):
            return None
        rng = np.random.default_rng(1)
        draws = []
        for indices in _resamples(len(self.labels), RESAMPLES):
            rows = len(indices)
            values = np.concatenate(
                [
                    _mean_of_draws(rng, block.second, rows) - _mean_of_draws(rng, block.first, rows)
                    for block in self.blocks
                ],
                axis=1,
            )
            draws.append(np.take_along_axis(values, indices, axis=1).mean(axis=1))
        return _interval(float(self.differences.mean()), np.concatenate(draws))

    def signs(self) -> Signs:
        """Test whether the sides do better on equally many videos.

        It is the exact sign test of the videos' differences: with one run a side, McNemar's exact test.
        """
        return _signs(self.differences)

    def by_class(self) -> list[ClassDifference]:
        """Compare the sides class by class, in ascending order of the difference.

        `q` bounds the share of false discoveries among the classes (Benjamini and Hochberg, 1995).
        """
        from scipy.stats import false_discovery_control

        (first, second), labels = self.values, self.labels
        rows = []
        for label in np.unique(labels):
            of_class = labels == label
            signs = _signs(second[of_class] - first[of_class])
            means = float(first[of_class].mean()), float(second[of_class].mean())
            rows.append(ClassDifference(int(label), int(of_class.sum()), *means, signs, 1.0))
        adjusted = false_discovery_control([row.signs.p for row in rows])
        rows = [row._replace(q=float(q)) for row, q in zip(rows, adjusted, strict=True)]
        return sorted(rows, key=lambda row: (row.second - row.first, row.label))


def difference_of_precisions(
    first: Sequence[Float[np.ndarray, "M K"]],
    second: Sequence[Float[np.ndarray, "M K"]],
    labels: Bool[np.ndarray, "M K"],
) -> Estimate:
    """Estimate the mean average precision of the second side less that of the first, videos as units.

    Each side has the scores of its runs, whose figures are averaged. Each class has a video at least.
    """
    sides = [[Precisions(scores, labels) for scores in side] for side in (first, second)]

    def of_resamples(indices: Int[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        before, after = (np.mean([run.mean(indices) for run in side], axis=0) for side in sides)
        return after - before

    return resampled(of_resamples, len(labels), resamples=RESAMPLES // 4)


def _resamples(videos: int, resamples: int) -> Iterator[Int[np.ndarray, "R M"]]:
    """Draw videos with replacement, a row for each resample, in parts that fit into memory."""
    rng = np.random.default_rng(0)
    rows = max(1, _AT_ONCE // videos)
    for start in range(0, resamples, rows):
        yield rng.integers(videos, size=(min(rows, resamples - start), videos))


def _interval(value: float, draws: Float[np.ndarray, " R"]) -> Estimate:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def _counts(indices: Int[np.ndarray, "R M"]) -> Int[np.ndarray, "R M"]:
    """Count how often each row has each video."""
    rows, videos = indices.shape
    cells = indices + videos * np.arange(rows)[:, None]
    return np.bincount(cells.ravel(), minlength=rows * videos).reshape(rows, videos)


def _mean_of_draws(
    rng: np.random.Generator, values: Float[np.ndarray, "S N"], rows: int
) -> Float[np.ndarray, "{rows} N"]:
    """Draw S of the runs with replacement, for each row, and average their values."""
    runs = len(values)
    return rng.multinomial(runs, np.full(runs, 1 / runs), size=rows) @ values / runs


def _signs(differences: Float[np.ndarray, " N"]) -> Signs:
    from scipy.stats import binomtest

    # Means over runs that are equal may differ in their last bits.
    better, worse = int((differences > 1e-9).sum()), int((differences < -1e-9).sum())
    return Signs(better, worse, float(binomtest(better, better + worse).pvalue) if better + worse else 1.0)


def _by_dataset(outcomes: Iterable[Outcome]) -> dict[Hashable, list[Outcome]]:
    found: dict[Hashable, list[Outcome]] = {}
    for outcome in outcomes:
        if len(np.unique(outcome.ids)) != len(outcome.ids):
            raise ValueError(f"a video of {outcome.dataset} comes twice")
        found.setdefault(outcome.dataset, []).append(outcome)
    return found


def _places(outcome: Outcome, ids: np.ndarray) -> Int[np.ndarray, " N"]:
    order = np.argsort(outcome.ids)
    return order[np.searchsorted(outcome.ids, ids, sorter=order)]


def _of(outcome: Outcome, ids: np.ndarray) -> Float[np.ndarray, " N"]:
    return outcome.correct[_places(outcome, ids)].astype(np.float64)


def _labels(outcome: Outcome, ids: np.ndarray) -> Int[np.ndarray, " N"]:
    return outcome.labels[_places(outcome, ids)]
