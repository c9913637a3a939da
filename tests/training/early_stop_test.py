"""Early stopping: when a run ends for want of better evaluations, and how it goes on."""

import json
import math

import pytest

from inti_jax.config import ConfigError, EarlyStop, Train
from inti_jax.reports import writing
from inti_jax.runs.evaluations import Evaluation, Setting
from inti_jax.training import early_stop, loop
from tests.configs import tiny
from tests.records import computed
from tests.unreported import without_reports

pytestmark = pytest.mark.usefixtures("shallow")

SETTING = Setting(1, 1, "0")


def reason(figures, step, **settings):
    """Of evaluations every 10 steps, `figures` by step, at `step`."""
    found = {at: Evaluation(at, figure, math.nan, SETTING, figure) for at, figure in figures.items()}
    return early_stop.reason(found, Train(eval_every_steps=10, early_stop=EarlyStop(**settings)), step)


def test_it_counts_the_evaluations_since_the_best():
    figures = {10: 0.5, 20: 0.6, 30: 0.6, 40: 0.55, 50: 0.61}
    assert reason(figures, 20, patience=1) is None
    assert "was 0.6000 at step 20" in reason(figures, 30, patience=1)  # as good is no rise
    assert reason(figures, 30, patience=2) is None
    assert "in 2 evaluations since" in reason(figures, 40, patience=2)
    assert reason(figures, 50, patience=1) is None
    assert "was 0.6000 at step 20" in reason(figures, 50, patience=1, min_delta=0.01)
    assert "`mean_class`" in reason(figures, 40, patience=2, metric="mean_class")


def test_evaluations_that_were_not_due_or_have_no_figure_do_not_count():
    figures = {10: 0.5, 15: 0.9, 20: 0.5, 25: 0.4, 30: 0.6}
    assert reason(figures, 15, patience=1) is None and reason(figures, 25, patience=1) is None
    assert "was 0.5000 at step 10" in reason(figures, 20, patience=1)
    assert reason(figures, 30, patience=1) is None
    assert reason({10: 0.5, 20: math.nan}, 20, patience=1) is None
    assert reason({10: 0.5}, 20, patience=1) is None and reason({}, 20, patience=1) is None


def test_a_run_ends_early_once_and_goes_on_with_more_patience(motion_data, tmp_path, caplog, monkeypatch):
    def settings(patience):
        return tiny(
            motion_data,
            data__num_frames=2,
            train__eval_every_steps=1,
            train__early_stop__patience=patience,
            train__early_stop__min_delta=1.0,  # of which no evaluation is better
        )

    with caplog.at_level("INFO"):
        loop.train(settings(1), tmp_path)
    assert any("step 2: stopping early: `top1` was" in text for text in caplog.messages)
    assert (tmp_path / "report.html").exists()
    ended = computed(tmp_path)
    assert [(r["step"], r["split"]) for r in ended] == [(1, "train"), (1, "val"), (2, "train"), (2, "val")]

    (tmp_path / "report.html").unlink()
    loop.train(settings(1), tmp_path)  # it has ended, and stays so
    assert computed(tmp_path) == ended and (tmp_path / "report.html").exists()

    monkeypatch.setattr(writing, "write_own", lambda workdir: None)
    # A kill between the last checkpoint and its evaluation.
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line for line in path.open() if json.loads(line)["step"] < 2))
    loop.train(settings(1), tmp_path)
    assert computed(tmp_path) == [record for record in ended if record["step"] < 2] + ended[-1:]

    loop.train(settings(2), tmp_path)
    assert [r["step"] for r in computed(tmp_path) if r["split"] == "val"] == [1, 2, 3]
    loop.train(settings(0), tmp_path)
    assert [r["step"] for r in computed(tmp_path) if r["split"] == "val"] == [1, 2, 3, 4]


@without_reports()
def test_a_run_that_ends_early_by_some_videos_is_evaluated_on_all(motion_data, tmp_path):
    settings = tiny(
        motion_data,
        data__num_frames=2,
        train__eval_every_steps=1,
        train__eval_videos=10,
        train__early_stop__patience=1,
        train__early_stop__min_delta=1.0,
    )
    loop.train(settings, tmp_path)
    ended = [record for record in computed(tmp_path) if record["split"] == "val"]
    assert [(r["step"], r.get("subset"), r["evaluated"]) for r in ended] == [
        (1, 10, 10),
        (2, 10, 10),
        (2, None, 20),
    ]
    # A kill before the last evaluation.
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line for line in path.open() if json.loads(line).get("evaluated") != 20))
    loop.train(settings, tmp_path)
    assert [record for record in computed(tmp_path) if record["split"] == "val"] == ended


def test_it_needs_evaluations():
    with pytest.raises(ConfigError, match=r"`train\.eval_every_steps` is 0: set how often to evaluate"):
        tiny(train__early_stop__patience=3)
