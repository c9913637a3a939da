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


def mean_average_precision(scores: Float[np.ndarray, "M K"], labels: Bool[np.ndarray, "M K"]) -> float:
    """Compute the average precision of each class, averaged over the classes; each has a video at least.

    It is the sum over thresholds of the precision times the rise in recall, without interpolation. Videos
    with equal scores pass a threshold together.
    """
    from sklearn.metrics import average_precision_score  # imported late: it takes a second

    return float(np.mean([average_precision_score(*pair) for pair in zip(labels.T, scores.T, strict=True)]))
