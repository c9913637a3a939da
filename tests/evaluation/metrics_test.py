import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from inti_jax.evaluation import metrics


@given(st.integers(0, 2**32 - 1), st.integers(3, 9), st.integers(5, 40))
def test_accuracies_are_scikit_learns(seed, classes, videos):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(classes), videos)
    labels = rng.integers(0, classes, videos)
    rank = metrics.ranks(probabilities, labels)
    for k in (1, 2):
        expected = top_k_accuracy_score(labels, probabilities, k=k, labels=range(classes))
        assert metrics.topk_accuracy(rank, k) == pytest.approx(expected)
    expected = balanced_accuracy_score(labels, probabilities.argmax(1))
    # scikit-learn warns about predicted classes that never occur, and leaves them out, as we do.
    assert metrics.mean_class_accuracy(rank, labels) == pytest.approx(expected)


def test_equal_probabilities_give_no_free_hits():
    """A model that says nothing is right for one class in three, not for all."""
    uniform = np.full((3, 3), 1 / 3)
    assert metrics.ranks(uniform, np.array([0, 1, 2])).tolist() == [0, 1, 2]


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 40), st.sampled_from([4, 1000]))
def test_mean_average_precision_is_precision_over_recall(seed, classes, videos, levels):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (videos, classes)) / levels  # with few levels many are equal
    labels = rng.random((videos, classes)) < 0.4
    labels[rng.integers(videos, size=classes), range(classes)] = True
    expected = []
    for score, label in zip(scores.T, labels.T, strict=True):
        # A positive adds the precision among the videos that score as it does or higher.
        expected.append(np.mean([label[score >= own].mean() for own in score[label]]))
    assert metrics.mean_average_precision(scores, labels) == pytest.approx(np.mean(expected))
