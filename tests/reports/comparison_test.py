"""The page of several runs, and what it says."""

import dataclasses
import json
import re

import pytest

from inti_jax.evaluation.analysis import Evaluated
from inti_jax.reports import comparison, writing
from inti_jax.reports.comparison import Point
from tests.configs import tiny
from tests.reports import made_up


def test_the_front_has_the_runs_that_none_beats():
    figures = {
        "dear": (3, 0.8),
        "as good": (3, 0.8),
        "cheap": (1, 0.5),
        "beaten": (2, 0.5),
        "dearer": (4, 0.8),
        "mid": (2, 0.6),
    }
    points = [Point(name, *figure, None) for name, figure in figures.items()]
    assert [point.name for point in comparison.front(points)] == ["cheap", "mid", "as good", "dear"]


def evaluated(name, **changes):
    saved, _ = made_up.predicted(**changes)
    return Evaluated(name, saved)


def test_all_pairs_are_compared_or_each_run_with_the_first():
    runs = {name: evaluated(name) for name in "abcd"}
    assert [(pair.first, pair.second) for pair in comparison.pairs(runs)] == [
        ("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d"),
    ]  # fmt: skip
    assert [pair.second for pair in comparison.pairs(runs, most=3)] == ["b", "c", "d"]


def test_a_pair_counts_the_videos_that_change():
    first = evaluated("a")
    right = first.saved.probabilities.argmax(axis=1) == first.saved.labels
    worse = first.saved.probabilities.copy()
    turned = right.nonzero()[0][:3]
    worse[turned] = worse[turned, ::-1]
    second = Evaluated("b", dataclasses.replace(first.saved, probabilities=worse))
    lost = int((worse.argmax(axis=1) != first.saved.labels).sum() - (~right).sum())
    (pair,) = comparison.pairs({"a": first, "b": second})
    assert pair.found.signs[:2] == (0, lost) and lost > 0
    assert pair.found.difference.value == pytest.approx(-lost / 40)
    gain, lose = comparison.changed(pair.found)
    assert not gain and sum(round(each.videos * (each.first - each.second)) for each in lose) == lost


def test_runs_that_do_not_compare_are_a_line():
    other = evaluated("b", classes=9)
    (pair,) = comparison.pairs({"a": evaluated("a"), "b": other})
    assert pair.found is None and "different classes" in pair.problem


def test_the_page_compares_runs(tmp_path):
    runs = []
    for number, name in enumerate(("one", "<two>", "without")):
        settings = tiny("nowhere", eval__clips=2, train__seed=number)
        runs.append(made_up.run(tmp_path / name, settings=settings))
    for path in (runs[2] / "predictions").iterdir():
        path.unlink()
    table = writing.write(runs, tmp_path, "three", timed=False)
    assert len(table.text.splitlines()) == 5
    page = (tmp_path / "report.html").read_text()
    assert "<two>" not in page and "&lt;two&gt;" in page
    assert "without keeps no predictions" in page
    charts = set(re.findall(r'id="chart-([a-z-]+)"', page))
    assert charts == {"pareto", "loss", "accuracy", "step-time", "wait", "gradient", "memory"}
    data = json.loads(re.search(r'id="page-data">(.*?)</script>', page)[1])
    (pair,) = data["pairs"]
    assert (pair["first"], pair["second"], pair["difference"][0]) == ("one", "<two>", 0)
    assert "train.seed" in page
