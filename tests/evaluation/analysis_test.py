"""Figures, ensembles and comparisons of predictions that are kept, and the command that prints them."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from inti_jax.errors import UserError
from inti_jax.evaluation import analysis, metrics, statistics
from inti_jax.evaluation.analysis import Evaluated
from inti_jax.runs import predictions
from inti_jax.runs.writers.jsonl import read_metrics
from tests import commands
from tests.runs.predictions_test import made_up


def evaluated(name="run", seed=0, videos=60, strength=0.3, **changes):
    """Predictions of a model that often sees the label; `strength` says how well."""
    saved, _ = made_up(videos=videos, missing=0, **changes)
    rng = np.random.default_rng(seed)
    noise = 0.7 * rng.dirichlet(np.ones(4), (videos, 1)) + 0.3 * rng.dirichlet(np.ones(4), (videos, 6))
    own = np.eye(4)[saved.labels] if saved.labels.ndim == 1 else saved.labels
    views = ((1 - strength) * noise + strength * own[:, None]).astype(np.float32)
    return Evaluated(
        name, dataclasses.replace(saved, probabilities=views.mean(axis=1)), views.astype(np.float16)
    )


def without(each, *rows):
    """The same evaluation, where some videos did not decode."""
    saved = each.saved
    kept = np.setdiff1d(np.arange(len(saved.ids)), rows)
    changed = {name: getattr(saved, name)[kept] for name in ("index", "labels", "probabilities", "frames")}
    ids = tuple(saved.ids[row] for row in kept)
    saved = dataclasses.replace(saved, ids=ids, missing=tuple(saved.ids[row] for row in rows), **changed)
    return dataclasses.replace(each, saved=saved, views=None)


def test_the_figures_of_a_run_are_those_it_logged(trained_run):
    found = analysis.summarize(analysis.load(trained_run, views=True))
    (logged,) = (r for r in read_metrics(trained_run) if r["split"] == "val")
    assert {name: found.figures[name].value for name in found.figures} == {
        name: logged[name] for name in ("top1", "top5", "mean_class")
    }
    assert (found.evaluated, found.missing, found.step) == (20, 0, logged["step"])
    assert [views for views, _ in found.by_views] == [1, 2] and found.by_views[1].value == logged["top1"]
    weights = sum(each.videos * each.value for each in found.classes)
    assert weights / 20 == pytest.approx(logged["top1"]) and len(found.classes) == 10


def test_figures_by_number_of_views_are_means_over_orders():
    each = evaluated()
    values = analysis.summarize(each).by_views
    labels, views = each.saved.labels, each.views.astype(np.float32)
    one = np.mean([(views[:, view].argmax(axis=1) == labels).mean() for view in range(6)])
    assert values[0].value == pytest.approx(one)
    rank = metrics.ranks(each.saved.probabilities, labels)
    assert values[-1] == (6, metrics.topk_accuracy(rank, 1)) and one < values[-1].value
    assert analysis.summarize(dataclasses.replace(each, views=None)).by_views == []


def test_several_labels_have_average_precisions():
    each = evaluated(several=True)
    found = analysis.summarize(each)
    labels, scores = each.saved.labels, each.saved.probabilities
    assert found.main == "map" and found.figures.keys() == {"map"}
    expected = [
        sklearn_metrics.average_precision_score(*pair) for pair in zip(labels.T, scores.T, strict=True)
    ]
    assert [row.value for row in found.classes] == pytest.approx(expected)
    assert [row.videos for row in found.classes] == labels.sum(axis=0).tolist()
    one = [
        metrics.mean_average_precision(each.views[:, view].astype(np.float32), labels) for view in range(6)
    ]
    assert min(one) < found.by_views[0].value < max(one)
    assert found.by_views[-1].value == found.figures["map"].value == pytest.approx(np.mean(expected))
    assert found.nll.value == pytest.approx(-np.log(np.where(labels, scores, 1 - scores)).mean(), rel=1e-5)


def test_an_ensemble_is_the_mean_of_probabilities():
    members = [evaluated(f"run {seed}", seed) for seed in range(3)]
    found = analysis.ensemble(members)
    mean = np.mean([member.saved.probabilities for member in members], axis=0)
    np.testing.assert_allclose(found.saved.probabilities, mean, rtol=1e-6)
    figures = [analysis.summarize(each).figures["top1"].value for each in (*members, found)]
    assert figures[3] > max(figures[:3])
    lacking = analysis.ensemble([members[0], without(members[1], 3, 5)])
    assert len(lacking.saved.ids) == 58 and set(lacking.saved.missing) == {"vidéo 3", "vidéo 5"}
    np.testing.assert_allclose(
        lacking.saved.probabilities[3],
        (members[0].saved.probabilities[4] + members[1].saved.probabilities[4]) / 2,
        rtol=1e-6,
    )


def test_two_runs_are_compared_on_the_videos_of_both():
    first, second = without(evaluated("a", 0), 7), without(evaluated("b", 1, strength=0.45), 9, 11)
    found = analysis.compare([first], [second])
    assert (found.videos, found.left_out) == (57, 3)
    rights = [
        dict(zip(each.saved.ids, each.saved.probabilities.argmax(axis=1) == each.saved.labels, strict=True))
        for each in (first, second)
    ]
    common = rights[0].keys() & rights[1].keys()
    assert found.values == pytest.approx([np.mean([right[id] for id in common]) for right in rights])
    assert found.signs.better == sum(rights[1][id] and not rights[0][id] for id in common)
    assert found.difference.value == pytest.approx(found.values[1] - found.values[0])
    assert sum(row.videos for row in found.classes) == 57 and found.over_runs is None


def test_seeds_and_folds_are_two_sides():
    sides = [
        [
            evaluated(
                f"{strength} {fold} {seed}", seed + 10 * fold, 40 + fold, strength, sha256=f"{fold}" * 64
            )
            for fold in range(2)
            for seed in range(3)
        ]
        for strength in (0.3, 0.4)
    ]
    found = analysis.compare(*sides)
    assert found.videos == 81 and found.over_runs.low < found.difference.value < found.over_runs.high
    with pytest.raises(UserError, match="different datasets"):
        analysis.compare(sides[0][:3], sides[1][3:])
    with pytest.raises(UserError, match=r"0\.3 1 0 predicted dataset 11111111 .made_up. and 0\.3 0 0 0{8}"):
        analysis.ensemble([sides[0][0], sides[0][3]])


def test_runs_with_several_labels_are_compared_by_their_precisions():
    first, second = evaluated("a", several=True), evaluated("b", strength=0.5, several=True)
    found = analysis.compare([first], [second])
    labels = first.saved.labels
    values = [metrics.mean_average_precision(each.saved.probabilities, labels) for each in (first, second)]
    assert found.values == pytest.approx(values) and found.signs is None
    assert found.difference.low < values[1] - values[0] < found.difference.high
    gains = [row.second - row.first for row in found.classes]
    assert gains == sorted(gains) and np.mean(gains) == pytest.approx(values[1] - values[0])
    with pytest.raises(UserError, match="different classes"):
        analysis.compare([first], [evaluated("c")])


# The command.


def call(capsys, *arguments):
    """The exit status of the command, and what it printed."""
    return commands.evaluate(*arguments), capsys.readouterr()


@pytest.fixture
def files(tmp_path):
    """The files of four runs: two seeds of two methods."""
    paths = []
    for number, strength in enumerate((0.3, 0.3, 0.4, 0.4)):
        each = evaluated(seed=number, strength=strength)
        paths.append(predictions.write(tmp_path / f"{number}", each.saved, each.views.astype(np.float32)))
    return paths


def test_the_command_prints_what_runs_say(trained_run, files, capsys):
    status, printed = call(capsys, trained_run)
    assert status == 0 and "top-1 by the number of views: 1: " in printed.out
    assert "the lowest 10 of 10 classes" in printed.out and "->" not in printed.out
    status, printed = call(capsys, *files[:2], "--against", *files[2:], "--ensemble", "--json")
    assert status == 0
    found = json.loads(printed.out)
    assert [run["name"] for run in found["runs"]][4:] == ["ensemble of 2", "ensemble of 2"]
    pooled, of_ensembles = found["comparisons"]
    assert pooled["first"] == [str(path) for path in files[:2]] and pooled["over_runs"]["low"] is not None
    expected = analysis.compare(*([analysis.load(path) for path in side] for side in (files[:2], files[2:])))
    assert pooled["difference"] == expected.difference._asdict()
    assert pooled["classes"] == [row._asdict() for row in expected.classes]
    assert of_ensembles["second"] == ["ensemble of 2"] and found["level"] == statistics.LEVEL
    reliability = found["runs"][0]["reliability"]
    assert len(reliability["accuracy"]) == 15 and None in reliability["accuracy"]  # an empty bin


def test_runs_that_do_not_compare_are_listed(trained_run, files, capsys):
    status, printed = call(capsys, files[0], files[2], trained_run)
    assert status == 0 and printed.out.count(" -> ") == 2  # one pair, and its figures
    assert "no comparison: " in printed.err and "Traceback" not in printed.err
    assert "McNemar, exact" in printed.out


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["nowhere"], 2, "nowhere/config.json does not exist"),
        (["{run}", "--step", "3"], 1, "keeps no predictions of step 3 with its own views"),
        (["{run}", "--weights", "ema"], 1, "ema weights (it has: 4-2x1-raw-"),
        (["{run}", "{run}"], 2, "a run is given twice"),
        (["{run}", "--ensemble"], 2, "--ensemble needs two runs"),
        (["{run}", "{file}", "--ensemble"], 1, "an ensemble needs the same videos"),
        (["{run}", "--against", "{file}"], 1, "have different classes, and do not compare"),
        (["{file}", "--step", "3"], 1, "is of step 4 and raw weights: name its run instead"),
        (["{text}"], 1, "damaged, or no archive of arrays: File is not a zip file"),
    ],
)
def test_a_mistake_is_one_clear_line(
    arguments, status, said, trained_run, files, tmp_path, monkeypatch, capsys
):
    (tmp_path / "text.npz").write_text("text")
    names = {"run": trained_run, "file": files[0], "text": tmp_path / "text.npz"}
    found, printed = call(capsys, *(each.format(**names) for each in arguments))
    assert found == status and said in printed.err
    assert printed.err.count("\n") == 1 and printed.out == ""
