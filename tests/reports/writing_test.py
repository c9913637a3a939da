import html
import json
import logging
import os
import re
import shutil
from pathlib import Path

import pytest

from inti_jax.config import ConfigError
from inti_jax.errors import UserError
from inti_jax.reports import writing
from inti_jax.runs.record import RunRecord
from inti_jax.runs.writers.metrics_writer import MetricsWriter
from tests.configs import record, tiny


def test_a_report_stands_alone(trained_run, tmp_path):
    table = writing.write([trained_run], tmp_path, "A <title>", timed=True)
    header, _, row = table.text.splitlines()
    assert header.split()[:3] == ["run", "top-1", "top-5"] and row.startswith("inti")
    (figures,) = json.loads((tmp_path / "report.json").read_text())
    tower = 64 * 3 * 96 + 96 + 17 * 96 + 2 * (12 * 96**2 + 13 * 96) + 2 * 192
    inti = 192 + 96 * 64 + 2 * (128**2 + 128) + 2 * 9 * 128 + 2 * 128 + 2
    assert figures["parameters"] == tower + inti + 96 * 10 + 10
    assert figures["inference_clips"] > 0
    page = (tmp_path / "report.html").read_text()
    assert "A &lt;title&gt;" in page
    # Its frames are on it: those of each of the 20 validation videos, as they are so small.
    assert page.count('class="strip" src="data:image/png;base64,') == 20 and "clip 2 of 2" in page
    assert len(page) < 3e6
    assert not re.search(r"<[^>]*(src|href)=\"(?!data:|#)", page.partition("<script>")[0])


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json"):
        writing.write([tmp_path], tmp_path, "none", timed=False)


def test_a_run_without_an_evaluation_has_a_page_that_says_so(trained_run, tmp_path):
    (tmp_path / "config.json").write_bytes((trained_run / "config.json").read_bytes())
    assert "-" in writing.write([tmp_path], tmp_path, "none", timed=False).text.splitlines()[-1]
    page = (tmp_path / "report.html").read_text()
    assert f"{tmp_path.name} was not evaluated: run" in page and "has no records of training" in page
    assert "keeps no predictions" in page and "GMACs by block" in page


OWN = {"views": 1, "clips": 1, "dataset": "0"}


def evaluated(workdir, *entries, settings=None):
    """A run without checkpoints whose records are `entries`, each a step and what differs from OWN."""
    record(settings or tiny()).write(workdir)
    writer = MetricsWriter(workdir, tiny())
    for step in (2, 4):
        writer.write(step, "train", {"loss": 1.0, "step_seconds": 0.1, "data_wait": 0.5})
    for step, top1, *changes in entries:
        writer.write(step, "val", OWN | {"top1": top1, "top5": 1.0} | dict(*changes))
    writer.close()
    return workdir


def rows(out):
    return {row["name"]: row["top1"] for row in json.loads((out / "report.json").read_text())}


def test_a_run_is_shown_by_its_own_evaluation_of_its_last_step(tmp_path):
    workdir = evaluated(
        tmp_path / "run",
        (2, 0.2),
        (4, 0.4),
        (2, 0.25),  # main --mode eval --step 2
        (4, 0.9, {"views": 3, "clips": 3}),
        (2, 0.8, {"views": 3, "clips": 1}),
        (4, 0.7, {"dataset": "another one"}),
    )
    writing.write([workdir], tmp_path, "one", timed=False)
    assert rows(tmp_path) == {
        "run": 0.4,
        "run, 3 x 1 views": 0.9,
        "run, 1 x 3 views, step 2": 0.8,
        "run, dataset another ": 0.7,
    }


def test_evaluations_of_some_videos_are_a_curve_and_no_row(tmp_path):
    some = {"subset": 10}
    workdir = evaluated(tmp_path / "run", (2, 0.3, some), (4, 0.5, some), (4, 0.4))
    writing.write([workdir], tmp_path, "one", timed=False)
    assert rows(tmp_path) == {"run": 0.4}
    page = (tmp_path / "report.html").read_text()
    assert "Validation: 40 % at step 4." in page
    assert "Validation, 10 videos: 50 % at step 4, from 30 at step 2" in page


def test_a_run_whose_last_step_was_not_evaluated_says_so(tmp_path, caplog):
    workdir = evaluated(tmp_path / "run", (2, 0.2), (4, 0.9, {"views": 3, "clips": 3}))
    table = writing.write([workdir], tmp_path, "one", timed=False)
    assert rows(tmp_path) == {"run": None, "run, step 2": 0.2, "run, 3 x 1 views": 0.9}
    assert [line.split()[-6:-4] for line in table.text.splitlines()[2:]] == [
        ["-", "-"],
        ["20.0", "100.0"],
        ["90.0", "100.0"],
    ]
    assert "run was not evaluated at its last step, 4" in caplog.text
    assert "run was not evaluated at its last step, 4" in (tmp_path / "report.html").read_text()


def test_runs_that_were_evaluated_otherwise_do_not_compare_and_it_is_said(tmp_path, caplog):
    runs = [evaluated(tmp_path / "a", (4, 0.5)), evaluated(tmp_path / "b", (4, 0.6))]
    settings = tiny(eval__clips=2)
    runs.append(evaluated(tmp_path / "c", (4, 0.7, {"views": 2, "clips": 2}), settings=settings))
    writing.write(runs, tmp_path, "three", timed=True)  # without checkpoints there is nothing to time
    assert rows(tmp_path) == {"a": 0.5, "b": 0.6, "c": 0.7}
    note = "c was evaluated differently from a (2 x 1 views), so their accuracies are not comparable."
    assert caplog.messages == [note] and note in (tmp_path / "report.html").read_text()


def test_the_last_step_is_that_of_the_newest_checkpoint(trained_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained_run, workdir)
    settings = RunRecord.read(workdir)
    writer = MetricsWriter(workdir, tiny())
    for step, top1 in ((4, 0.75), (2, 0.5)):
        writer.write(
            step,
            "val",
            {"top1": top1, "top5": 1.0, "views": 2, "clips": 2, "dataset": settings.dataset.sha256},
        )
    writing.write([workdir], tmp_path, "one", timed=False)
    assert rows(tmp_path) == {"run": 0.75}


def test_records_that_say_less_are_read_and_broken_ones_are_named(tmp_path):
    workdir = evaluated(tmp_path / "run", (4, 0.5))
    path = workdir / "metrics.jsonl"
    path.write_text('{"step": 4, "split": "val", "top1": 0.5, "views": 1, "dataset": "0"}\n')
    writing.write([workdir], tmp_path, "one", timed=False)
    (row,) = json.loads((tmp_path / "report.json").read_text())
    assert (row["name"], row["top1"], row["top5"]) == ("run", 0.5, None)
    path.write_text('{"step": 4, "split": "val", "top1": "half"}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: the `val` record of step 4 has no accuracies"):
        writing.write([workdir], tmp_path, "one", timed=False)


def test_runs_with_directories_of_the_same_name_are_told_apart(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("a/x/run", "b/x/run", "b/other")]
    for number, path in enumerate(paths):
        evaluated(path, (4, number / 10))
    monkeypatch.chdir(paths[0])
    table = writing.write([Path(), *paths], tmp_path, "several", timed=False)  # the first one twice
    assert rows(tmp_path) == {"a/x/run": 0.0, "b/x/run": 0.1, "other": 0.2}
    page = (tmp_path / "report.html").read_text()
    assert page.count(": config</summary>") == 3 and "b/x/run: config" in page
    assert len(table.text.splitlines()) == 5


@pytest.mark.parametrize("name", ["a$$5_{$^b", "_hidden", os.fsdecode(b"caf\xe9"), "two\nlines"])
def test_any_name_of_a_run_is_drawn_and_written(tmp_path, name, caplog):
    runs = [evaluated(tmp_path / place / name, (4, 0.5)) for place in "ab"]
    writing.write(runs[:1], tmp_path, name, timed=False)
    escaped = html.escape(name.replace("\n", "\\x0a").replace("\udce9", "\\xe9"))
    assert f"<h1>{escaped}</h1>" in (tmp_path / "report.html").read_text()
    writing.write(runs, tmp_path, name, timed=False)
    assert f"a/{escaped}" in (tmp_path / "report.html").read_text() and not caplog.messages


def test_records_that_are_no_numbers_leave_the_rest_and_it_is_said(tmp_path, caplog):
    workdir = evaluated(tmp_path / "run", (4, 0.5))
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "split": "train", "loss": "no number", "step_seconds": 1}\n')
    writing.write([workdir], tmp_path, "one", timed=False)
    assert rows(tmp_path) == {"run": 0.5}
    page = (tmp_path / "report.html").read_text()
    assert "1 values in the records of training are no finite numbers" in page and 'id="chart-loss"' in page


def test_a_report_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    workdir = evaluated(tmp_path / "run", (4, 0.5))
    (workdir / "report.json").mkdir()  # stands for whatever the system refuses
    with caplog.at_level(logging.WARNING):
        writing.write_own(workdir)
    (line,) = caplog.messages
    assert "report could not be written" in line and "report.json" in line
