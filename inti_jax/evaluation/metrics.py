"""Compute the accuracies and the average precisions of a whole evaluation in NumPy.

Every host computes the same figures from the same rows.
"""

import numpy as np
from jaxtyping import Bool, Float, Int


def ranks(probabilities: Float[np.ndarray, "M K"], labels: Int[np.ndarray, " M"]) -> Int[np.ndarray, " M"]:
    """Count the classes ranked before the true one; of equal classes the lower index comes first."""
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)
    before = np.arange(probabilities.shape[1]) < labels[:, None]
    return ((probabilities > own) | ((probabilities == own) & before)).sum(axis=1)


def topk_accuracy(rank: Int[np.ndarray, " M"], k: int) -> float:
    """Compute the share of videos whose true class is among the first k."""
    return float((rank < k).mean())


def mean_class_accuracy(rank: Int[np.ndarray, " M"], labels: Int[np.ndarray, " M"]) -> float:
    """Compute the top-1 accuracy of each class that occurs, averaged over those classes."""
    correct = np.bincount(labels, weights=rank == 0)
    count = np.bincount(labels)
    return float((correct[count > 0] / count[count > 0]).mean())


def average_precisions(
    scores: Float[np.ndarray, "M K"], labels: Bool[np.ndarray, "M K"]
) -> Float[np.ndarray, " K"]:
    """Compute the average precision of each of K classes; NaN for a class that no video has.

    It is the sum over thresholds of the precision times the rise in recall, without interpolation, as
    scikit-learn's `average_precision_score`. Videos with equal scores pass a threshold together.
    """
    return np.array([_average_precision(*column) for column in zip(scores.T, labels.T, strict=True)])


def _average_precision(scores: Float[np.ndarray, " M"], labels: Bool[np.ndarray, " M"]) -> float:
    positives = labels.sum()
    if not positives:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    # The last video of each run of equal scores.
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    found = labels[order].cumsum()[ends]
    return float((found / (ends + 1) * np.diff(found, prepend=0)).sum() / positives)
