"""Count which classes are taken for which, in predictions of videos that have one label each."""

import dataclasses
from typing import NamedTuple

import numpy as np

from inti_jax.runs.predictions import SavedPredictions


class Confusion(NamedTuple):
    """The videos of a class that were taken for another class, or for their own."""

    label: int
    predicted: int
    videos: int
    share: float  # of the videos of the class


@dataclasses.dataclass(frozen=True)
class Confusions:
    """All entries of a confusion matrix that are not zero, label by label."""

    classes: tuple[str, ...]
    entries: list[Confusion]

    def errors(self) -> list[Confusion]:
        """List the entries off the diagonal, those of the most videos first."""
        wrong = [entry for entry in self.entries if entry.label != entry.predicted]
        return sorted(wrong, key=lambda entry: (-entry.videos, -entry.share, entry.label, entry.predicted))


def count(saved: SavedPredictions) -> Confusions:
    """Count the confusions of predictions. Raises ValueError where videos have several labels."""
    if saved.multi_label:
        raise ValueError("videos with several labels have no confusion matrix")
    classes = len(saved.classes)
    cells = saved.labels.astype(np.int64) * classes + saved.probabilities.argmax(axis=1)
    places, videos = np.unique(cells, return_counts=True)
    of_class = np.bincount(saved.labels, minlength=classes)
    return Confusions(
        saved.classes,
        [
            Confusion(place // classes, place % classes, number, number / int(of_class[place // classes]))
            for place, number in zip(places.tolist(), videos.tolist(), strict=True)
        ],
    )
