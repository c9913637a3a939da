"""Test what the pages of runs are made of, before it is drawn."""

import dataclasses
import math

import numpy as np
import pytest

from inti_jax.config import Config
from inti_jax.reports import clips, confusions, costs, curves, runs, settings
from tests.configs import INTI, record, tiny
from tests.reports import made_up


def gathered(workdir, most=curves.MOST):
    (run,) = runs.read([workdir])
    return curves.gather(run, most)


def test_curves_have_what_was_recorded(tmp_path):
    found = gathered(made_up.run(tmp_path))
    assert found.steps.tolist() == [1, 2, 3, 4] and found.averaged == 1
    assert found.figures["loss"].tolist() == [2.5, 2.0, 1.5, 1.0] and "mfu" not in found.figures
    (validation,) = found.validation
    assert validation.steps.tolist() == [2, 4] and validation.values.tolist() == [0.25, 0.5]
    assert found.restarts == [2]
    assert [(each.step, each.what, each.how) for each in found.compilations] == [(1, "step", "compiled")]


def test_long_curves_are_averaged(tmp_path):
    found = gathered(made_up.run(tmp_path), most=2)
    assert found.averaged == 2
    assert found.steps.tolist() == [1.5, 3.5] and found.figures["loss"].tolist() == [2.25, 1.25]
    found = gathered(tmp_path, most=3)
    assert found.steps.tolist() == [1.5, 3.5]
    found = gathered(tmp_path, most=1)
    assert found.steps.tolist() == [2.5]


def test_the_weights_of_each_layer_have_their_curves(tmp_path):
    assert gathered(made_up.run(tmp_path / "none")).blends == []
    changes = {"model__compression__after": (1, 3), "model__compression__group": 3, "data__num_frames": 9}
    workdir = made_up.run(tmp_path / "inti", settings=tiny(**INTI | changes))
    with (workdir / "metrics.jsonl").open("a") as file:  # of no layer, and without a figure
        file.write('{"step": 5, "split": "blends", "block": 2, "mean_1": 0.5}\n')
        file.write('{"step": 5, "split": "blends", "block": 1, "mean_1": "half"}\n')
    first, second = gathered(workdir).blends
    assert (first.block, second.block) == (1, 3)
    assert first.steps.tolist() == [1, 2, 3, 4] and first.means.shape == first.stds.shape == (3, 4)
    np.testing.assert_allclose(first.means[0], 1 / 3 + np.array([0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_allclose(first.means.sum(axis=0), 1)
    np.testing.assert_allclose(first.stds[2], [0.05, 0.1, 0.15, 0.2])
    np.testing.assert_allclose(second.far, [0.11, 0.21, 0.31, 0.41])
    halved = gathered(workdir, most=2).blends[0]
    assert halved.steps.tolist() == [1.5, 3.5]
    np.testing.assert_allclose(halved.far, [0.15, 0.35])


def test_smoothing_starts_without_a_bias_and_steps_over_gaps():
    assert curves.smoothed(np.array([3.0, 3.0, 3.0])) == pytest.approx([3, 3, 3])
    found = curves.smoothed(np.array([np.nan, 1.0, np.nan, 2.0]), weight=0.5)
    assert np.isnan(found[0]) and found[1:] == pytest.approx([1, 1, (0.25 + 1) / 0.75])


@pytest.mark.parametrize("value", ["1", None, True, [1], math.inf, math.nan])
def test_only_finite_numbers_are_figures(value):
    assert math.isnan(curves.number(value)) and curves.number(2) == 2.0


def test_confusions_add_up_to_the_matrix():
    saved, _ = made_up.predicted(videos=200, classes=4)
    found = confusions.count(saved)
    matrix = np.zeros((4, 4), int)
    for label, predicted in zip(saved.labels, saved.probabilities.argmax(axis=1), strict=True):
        matrix[label, predicted] += 1
    for entry in found.entries:
        assert entry.videos == matrix[entry.label, entry.predicted] > 0
        assert entry.share == pytest.approx(entry.videos / matrix[entry.label].sum())
    assert sum(entry.videos for entry in found.entries) == 200
    errors = found.errors()
    assert [entry.videos for entry in errors] == sorted((entry.videos for entry in errors), reverse=True)
    assert all(entry.label != entry.predicted for entry in errors)


def of(probabilities, labels):
    saved, _ = made_up.predicted(videos=len(labels), classes=len(probabilities[0]))
    found = np.asarray(probabilities, np.float32)
    return dataclasses.replace(saved, probabilities=found, labels=np.asarray(labels))


def test_the_clips_are_the_worst_errors_then_the_least_sure_then_any_others():
    probabilities = [[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.51, 0.49, 0], [0.0, 0.2, 0.8], [0, 0.3, 0.7]]
    saved = of(probabilities, np.array([1, 2, 0, 2, 2], np.int32))
    chosen = clips.choose(saved, each=1)
    assert chosen["worst"] == [0] and chosen["unsure"] == [2] and set(chosen["random"]) < {1, 3, 4}
    chosen = clips.choose(saved, each=3)
    assert chosen["worst"] == [0, 1] and chosen["unsure"] == [2, 4, 3] and chosen["random"] == []
    several = of(probabilities, np.array([[1, 1, 0]] * 5, bool))
    assert clips.choose(several, each=1)["worst"] == [3]


def test_videos_have_their_best_labels():
    saved = of([[0.2, 0.7, 0.1]], np.array([2], np.int32))
    (video,) = clips.videos(saved, [0])
    assert video.labels == ["class 2"]
    guesses = [(guess.label, round(guess.probability, 3), guess.right) for guess in video.guesses]
    assert guesses == [("class 1", 0.7, False), ("class 0", 0.2, False), ("class 2", 0.1, True)]


def test_the_search_has_every_video_up_to_a_bound():
    saved, _ = made_up.predicted(videos=6, classes=7)
    found = clips.listed(saved, most=4)
    assert (found.ids, found.left_out, found.each) == (list(saved.ids[:4]), 2, 5)
    assert found.labels == saved.labels[:4, None].tolist()
    assert found.best[::5] == saved.probabilities[:4].argmax(axis=1).tolist()
    assert found.probabilities[0] == round(1000 * float(saved.probabilities[0].max()))


def test_the_cost_by_block_adds_up():
    found = costs.compute(record(tiny(**INTI)))
    none = costs.compute(record(tiny()))
    assert [block.frames for block in found.blocks] == [8, 4, 4, 4]
    assert [block.uncompressed for block in found.blocks] == [block.gmacs for block in none.blocks]
    assert found.uncompressed == none.gmacs and none.share == 1 and 0.5 < found.share < 1
    assert found.parameters > none.parameters == none.trained


def test_the_changes_of_a_config_are_its_values_that_are_no_defaults():
    found = {change.key: change for change in settings.changes(tiny(**INTI))}
    assert found["model.compression.after"] == ("model.compression.after", "1", "none")
    assert found["model.pretrained"].default == '""' and "model.adaptation" not in found
    assert settings.changes(Config()) == []
    assert settings.differences([tiny(), tiny(train__seed=3)]) == [("train.seed", ["0", "3"])]
