"""Statistics against independent references, and intervals against simulations of what they promise."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from inti_jax.evaluation import metrics, statistics
from inti_jax.evaluation.statistics import Outcome, Paired

RNG = np.random.default_rng(0)


def made_up(videos=60, classes=5, ties=False):
    """Probabilities and labels, which are often right."""
    logits = RNG.normal(size=(videos, classes)).astype(np.float32)
    labels = RNG.integers(0, classes, videos)
    logits[np.arange(videos), labels] += 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return (np.round(probabilities, 1) if ties else probabilities), labels


def run(correct, dataset="a", ids=None, labels=None):
    correct = np.asarray(correct, float)
    ids = np.arange(len(correct)) if ids is None else np.asarray(ids)
    return Outcome(dataset, ids, np.zeros(len(correct), int) if labels is None else labels, correct)


# Figures of one run.


@pytest.mark.parametrize(("hits", "total"), [(0, 7), (7, 7), (40, 90), (1, 1)])
def test_the_interval_of_a_share_is_wilsons(hits, total):
    found = statistics.proportion(np.arange(total) < hits)
    expected = stats.binomtest(hits, total).proportion_ci(0.95, method="wilson")
    assert found == pytest.approx((hits / total, *expected), rel=0, abs=1e-15)


def test_the_bootstrap_of_a_mean_is_scipys():
    values = RNG.exponential(size=150)
    found = statistics.mean(values)
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    assert found.value == pytest.approx(values.mean())
    assert found[1:] == pytest.approx(tuple(expected.confidence_interval), abs=0.02)
    assert found == statistics.mean(values)  # draws are seeded


def test_the_mean_over_classes_is_sklearns_of_every_resample(monkeypatch):
    probabilities, labels = made_up(classes=8, videos=40)
    correct = probabilities.argmax(axis=1) == labels
    monkeypatch.setattr(statistics, "_AT_ONCE", 100)  # several parts
    monkeypatch.setattr(statistics, "RESAMPLES", 50)
    found = statistics.resampled(lambda rows: rows[:, 0] + 0.0, 40, resamples=7)
    assert found.value == 0 and 0 <= found.low < found.high < 40
    taken = []

    def spy(statistic, videos, **_):
        rows = np.random.default_rng(3).integers(videos, size=(30, videos))
        taken.append((rows, statistic(rows)))
        return statistics.Estimate(0, 0, 0)

    monkeypatch.setattr(statistics, "resampled", spy)
    statistics.mean_class_accuracy(correct, labels)
    for row, value in zip(*taken[0], strict=True):
        recalls = [correct[row][labels[row] == label].mean() for label in np.unique(labels[row])]
        assert value == pytest.approx(np.mean(recalls))


def test_the_mean_over_classes_is_balanced_accuracy():
    probabilities, labels = made_up()
    predicted = probabilities.argmax(axis=1)
    found = statistics.mean_class_accuracy(predicted == labels, labels)
    assert found.value == pytest.approx(sklearn_metrics.balanced_accuracy_score(labels, predicted))
    assert found.low < found.value < found.high


@pytest.mark.parametrize("ties", [False, True])
def test_average_precisions_of_resamples_are_sklearns(ties):
    scores, _ = made_up(ties=ties)
    labels = RNG.random(scores.shape) < 0.3
    counts = RNG.integers(0, 4, size=(10, len(scores)))
    found = statistics.Precisions(scores, labels).by_class(counts)
    for row, weights in zip(found, counts, strict=True):
        for label in range(scores.shape[1]):
            expected = sklearn_metrics.average_precision_score(
                labels[:, label], scores[:, label], sample_weight=weights
            )
            assert row[label] == pytest.approx(expected)
    estimate = statistics.mean_average_precision(scores, labels)
    assert estimate.value == pytest.approx(metrics.mean_average_precision(scores, labels))
    assert estimate.low < estimate.value < estimate.high


def test_reliability_by_definition():
    confidence = np.concatenate([RNG.random(500), [0, 1, 1 / 15, 2 / 15]]).astype(np.float32)
    correct = RNG.random(504) < 0.4
    found = statistics.reliability(confidence, correct)
    error = 0.0
    for low, high, count, mean, accuracy in zip(found.edges[:-1], found.edges[1:], *found[1:], strict=True):
        within = (confidence > low) & (confidence <= high) | ((low == 0) & (confidence == 0))
        assert count == within.sum()
        assert (mean, accuracy) == pytest.approx((confidence[within].mean(), correct[within].mean()))
        error += within.sum() / 504 * abs(confidence[within].mean() - correct[within].mean())
    assert found.error == pytest.approx(error) and found.answers.sum() == 504


def test_the_likelihood_is_sklearns_log_loss():
    probabilities, labels = made_up()
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    found = statistics.negative_log_likelihood(exact, labels)
    assert found.mean() == pytest.approx(sklearn_metrics.log_loss(labels, exact))
    several = RNG.random(probabilities.shape) < 0.3
    found = statistics.negative_log_likelihood(exact, several)
    answers = np.stack([1 - exact, exact], axis=-1).reshape(-1, 2)
    expected = sklearn_metrics.log_loss(several.ravel(), answers)
    assert found.mean() == pytest.approx(expected)
    assert np.isfinite(statistics.negative_log_likelihood(np.array([[0.0, 1.0]]), np.array([0]))).all()


# Comparison of two sides.


def test_one_run_a_side_is_mcnemars_test_and_the_bootstrap_of_the_difference():
    first, second = RNG.random(80) < 0.5, RNG.random(80) < 0.6
    paired = Paired([run(first)], [run(second)])
    gained, lost = (second & ~first).sum(), (first & ~second).sum()
    found = paired.signs()
    assert (found.better, found.worse) == (gained, lost)
    assert found.p == pytest.approx(min(1, 2 * stats.binom.cdf(min(gained, lost), gained + lost, 0.5)))
    difference = second.astype(float) - first
    expected = stats.bootstrap((difference,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    assert paired.difference().value == pytest.approx(difference.mean())
    assert paired.difference()[1:] == pytest.approx(tuple(expected.confidence_interval), abs=0.015)
    assert paired.difference_over_runs() is None
    same = Paired([run(first)], [run(first)])
    assert same.signs() == (0, 0, 1.0) and same.difference() == (0, 0, 0)


def test_seeds_are_averaged_and_folds_are_pooled():
    folds = {"a": (30, 3, 2), "b": (50, 2, 2)}  # videos, seeds of the first side, of the second
    sides, expected = ([], []), []
    for dataset, (videos, *seeds) in folds.items():
        rows = [RNG.random((count, videos)) < 0.5 for count in seeds]
        for side, matrix in zip(sides, rows, strict=True):
            for row in matrix:
                order = RNG.permutation(videos)  # ids come in any order
                side.append(run(row[order], dataset, ids=[f"{dataset}{i:03d}" for i in order]))
        expected.append(rows[1].mean(axis=0) - rows[0].mean(axis=0))
    paired = Paired(*sides)
    np.testing.assert_allclose(np.sort(paired.differences), np.sort(np.concatenate(expected)))
    np.testing.assert_allclose(paired.differences[:30], expected[0])
    signs = paired.signs()
    assert signs.better + signs.worse == (np.abs(np.concatenate(expected)) > 1e-9).sum()
    over_videos, over_runs = paired.difference(), paired.difference_over_runs()
    assert over_videos.value == pytest.approx(np.concatenate(expected).mean()) == over_runs.value
    assert over_runs.high - over_runs.low > over_videos.high - over_videos.low


def test_only_videos_that_all_runs_have_are_paired():
    first, second = run([1, 0, 1], ids=[1, 2, 3]), run([1, 1, 1, 0], ids=[4, 3, 2, 0])
    paired = Paired([first], [second])
    assert paired.differences.tolist() == [1, 0] and paired.left_out == 3
    for other, said in (
        (run([1], "b"), "different datasets"),
        (run([1], ids=[9]), "no video in common"),
        (run([1, 0], ids=[1, 1]), "comes twice"),
        (run([1, 0], ids=[1, 2], labels=np.array([0, 1])), "different labels"),
    ):
        with pytest.raises(ValueError, match=said):
            Paired([first], [other])


def test_classes_are_compared_and_their_tests_adjusted():
    labels = np.repeat([0, 1, 4], [20, 30, 10])
    first = (np.arange(60) % 2).astype(bool)
    second = np.where(labels == 0, True, np.where(labels == 1, False, first))
    rows = Paired([run(first, labels=labels)], [run(second, labels=labels)]).by_class()
    assert [(row.label, row.videos, row.first, row.second) for row in rows] == [
        (1, 30, 0.5, 0.0), (4, 10, 0.5, 0.5), (0, 20, 0.5, 1.0)
    ]  # fmt: skip
    expected = stats.false_discovery_control([row.signs.p for row in rows])
    assert [row.q for row in rows] == pytest.approx(list(expected))
    assert rows[0].signs.p == pytest.approx(2 * 0.5**15) and rows[1].signs == (0, 0, 1.0)


def test_the_difference_of_precisions_is_that_of_the_estimates():
    labels = RNG.random((80, 4)) < 0.3
    first, second = (RNG.random((80, 4)) + strength * labels for strength in (0.2, 0.6))
    found = statistics.difference_of_precisions([first], [second, second], labels)
    values = [metrics.mean_average_precision(scores, labels) for scores in (first, second)]
    assert found.value == pytest.approx(values[1] - values[0]) and 0 < found.low < found.value < found.high
    same = statistics.difference_of_precisions([first], [first], labels)
    assert same == (0, 0, 0)


# What intervals promise.


def test_wilsons_interval_covers_as_it_says():
    for share in (0.1, 0.5, 0.9):
        weights = stats.binom.pmf(np.arange(121), 120, share)
        bounds = [statistics.proportion(np.arange(120) < hits)[1:] for hits in range(121)]
        covered = sum(w for w, (low, high) in zip(weights, bounds, strict=True) if low <= share <= high)
        assert 0.93 < covered < 0.97


def covering(monkeypatch, runs, spread, interval, trials=200, videos=150):
    """The share of intervals with the true difference in them, where runs differ by `spread` in log-odds."""
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    rng = np.random.default_rng(5)
    # The expected accuracy over videos, whose difficulty differs, and over runs.
    difficulty, luck = rng.normal(size=(2, 400_000))
    truth = [float((1 / (1 + np.exp(-(skill - difficulty - spread * luck)))).mean()) for skill in (0.3, 0.6)]
    covered = 0
    for _ in range(trials):
        difficulty = rng.normal(size=videos)
        sides = []
        for skill in (0.3, 0.6):
            logits = skill - difficulty - spread * rng.normal(size=(runs, 1))
            sides.append([run(row) for row in rng.random((runs, videos)) < 1 / (1 + np.exp(-logits))])
        found = interval(Paired(*sides))
        covered += found.low <= truth[1] - truth[0] <= found.high
    return covered / trials


def test_the_paired_interval_covers_as_it_says(monkeypatch):
    assert 0.92 < covering(monkeypatch, 1, 0.0, Paired.difference) < 0.98


def test_runs_that_differ_need_the_interval_over_runs(monkeypatch):
    over_videos = covering(monkeypatch, 3, 0.3, Paired.difference)
    over_runs = covering(monkeypatch, 3, 0.3, Paired.difference_over_runs)
    assert over_videos < 0.75 and over_runs > 0.85
