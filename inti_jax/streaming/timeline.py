"""Label a long video over time: segments of time with their labels, from windows that slide over it."""

import collections
import heapq
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from inti_jax.streaming.feed import Answer


class Segment(NamedTuple):
    """Seconds of a video that have one label, and its mean probability there."""

    start: float
    end: float
    label: str
    probability: float


class Point(NamedTuple):
    """The probabilities at a moment: the middle of a window."""

    seconds: float
    probabilities: Float[np.ndarray, " K"]


def points(answers: Iterable[Answer]) -> Iterator[Point]:
    """Take each answer as that of the middle of its window."""
    for answer in answers:
        yield Point(sum(answer.seconds) / 2, answer.probabilities)


def smoothed(found: Iterable[Point], seconds: float) -> Iterator[Point]:
    """Average the probabilities at each point over all points up to `seconds` / 2 before and behind it."""
    if not seconds:
        yield from found
        return
    half = seconds / 2 + 1e-9
    near: collections.deque[Point] = collections.deque()
    at = 0  # the place in `near` of the next one to give
    for point in itertools.chain(found, [None]):
        while at < len(near) and (point is None or point.seconds - near[at].seconds > half):
            middle = near[at].seconds
            while middle - near[0].seconds > half:
                near.popleft()
                at -= 1
            around = [one.probabilities for one in near if one.seconds - middle <= half]
            yield Point(middle, np.mean(around, axis=0))
            at += 1
        if point is not None:
            near.append(point)


class Labels:
    """The labels of consecutive points, merged into segments where they stay the same.

    A point speaks for the time up to the middle between it and its neighbours. A video has one label at a
    time, the most probable one, or with `multi_label` all of them; in either case of those whose probability
    is at least `threshold`.
    """

    def __init__(self, labels: Collection[str], threshold: float, *, multi_label: bool):
        self._labels = tuple(labels)
        self._threshold, self._multi_label = threshold, multi_label
        # For each label that goes on, when it started, the sum of its probabilities and their number.
        self._open: dict[int, tuple[float, float, int]] = {}
        self._done: list[Segment] = []  # a heap

    def segments(self, found: Iterable[Point], start: float, end: Callable[[], float]) -> Iterator[Segment]:
        """Yield the segments in the order of their starts, as soon as none that starts earlier can follow.

        The first one starts at `start`; the last one ends at `end`, which is asked for at the end.
        """
        before = None
        for point in found:
            edge = start if before is None else (before.seconds + point.seconds) / 2
            present = self._present(point.probabilities)
            self._close(self._open.keys() - present, edge)
            for label in present:
                since, total, count = self._open.get(label, (edge, 0.0, 0))
                self._open[label] = since, total + float(point.probabilities[label]), count + 1
            before = point
            first = min((since for since, _, _ in self._open.values()), default=edge)
            while self._done and self._done[0].start <= first:
                yield heapq.heappop(self._done)
        if before is not None:
            self._close(list(self._open), max(end(), before.seconds))
        while self._done:
            yield heapq.heappop(self._done)

    def _present(self, probabilities: Float[np.ndarray, " K"]) -> set[int]:
        enough = np.flatnonzero(probabilities >= self._threshold).tolist()
        return set(enough) if self._multi_label else {int(probabilities.argmax())} & set(enough)

    def _close(self, labels: Collection[int], edge: float) -> None:
        for label in labels:
            since, total, count = self._open.pop(label)
            if edge > since:
                heapq.heappush(self._done, Segment(since, edge, self._labels[label], total / count))


class Curve:
    """The probabilities of a whole video in bounded memory: the means over equal numbers of points."""

    def __init__(self, most: int = 2048):
        self._most, self._each = most, 1
        self._seconds: list[float] = []
        self._rows: list[Float[np.ndarray, " K"]] = []
        self._part: list[Point] = []

    def noting(self, found: Iterable[Point]) -> Iterator[Point]:
        """Add the points as they pass."""
        for point in found:
            self._part.append(point)
            if len(self._part) == self._each:
                self._seconds.append(self._part[0].seconds)
                self._rows.append(np.mean([one.probabilities for one in self._part], axis=0))
                self._part = []
            if len(self._rows) == self._most:  # even
                self._rows = [(a + b) / 2 for a, b in zip(self._rows[::2], self._rows[1::2], strict=True)]
                self._seconds, self._each = self._seconds[::2], 2 * self._each
            yield point

    @property
    def seconds(self) -> Float[np.ndarray, " P"]:
        """The time of the first point of each row."""
        return np.array(self._seconds)

    @property
    def probabilities(self) -> Float[np.ndarray, "P K"]:
        """The mean probabilities."""
        return np.array(self._rows)
