"""Compare runs: which are worth their cost, and on which videos and classes two of them differ."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from inti_jax.errors import UserError
from inti_jax.evaluation import analysis, statistics
from inti_jax.evaluation.analysis import ClassChange, Comparison, Evaluated
from inti_jax.evaluation.statistics import Estimate

# Runs of which all pairs are compared. Of more, each is compared with the first.
ALL_PAIRS = 12


class Point(NamedTuple):
    """A run's figure against its cost. The interval is None where it keeps no predictions."""

    name: str
    gmacs: float  # per view
    value: float
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two runs by name, and their comparison on the same videos, or a line that says why there is none."""

    first: str
    second: str
    found: Comparison | None
    problem: str = ""


def main_figure(evaluated: Evaluated) -> Estimate:
    """Estimate the figure that a run is judged by, as `analysis.summarize` does."""
    saved = evaluated.saved
    if saved.multi_label:
        return analysis.summarize(evaluated).figures["map"]
    return statistics.proportion(saved.probabilities.argmax(axis=1) == saved.labels)


def front(points: Sequence[Point]) -> list[Point]:
    """List the points that no other beats, by cost: none is as cheap and better, or as good and cheaper."""
    kept = [
        point
        for point in points
        if not any(
            other.gmacs <= point.gmacs
            and other.value >= point.value
            and (other.gmacs, other.value) != (point.gmacs, point.value)
            for other in points
        )
    ]
    return sorted(kept, key=lambda point: (point.gmacs, point.name))


def pairs(evaluated: Mapping[str, Evaluated], most: int = ALL_PAIRS) -> list[Pair]:
    """Compare all pairs of runs, the second less the first; of more than `most` runs, each with the first."""
    names = list(evaluated)
    wanted = (
        itertools.combinations(names, 2) if len(names) <= most else ((names[0], name) for name in names[1:])
    )
    return [_pair(first, second, evaluated) for first, second in wanted]


def _pair(first: str, second: str, evaluated: Mapping[str, Evaluated]) -> Pair:
    try:
        return Pair(first, second, analysis.compare([evaluated[first]], [evaluated[second]]))
    except UserError as error:
        return Pair(first, second, None, " ".join(str(error).split()))


def changed(found: Comparison, most: int = 10) -> tuple[list[ClassChange], list[ClassChange]]:
    """List the classes that gain the most, and those that lose the most."""
    lose = [change for change in found.classes if change.second < change.first][:most]
    gain = [change for change in reversed(found.classes) if change.second > change.first][:most]
    return gain, lose
