"""Trainings of two processes that are killed in a row; `python -m tests.chaos` does so to dozens."""

import numpy as np
import pytest

import inti_jax
from inti_jax.host import mirrors
from inti_jax.runs import evaluations
from tests import commands
from tests.chaos import Fault, Runs, survive

STEPS = 18  # three checkpoints


@pytest.fixture(scope="module")
def runs(motion_data, tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("chaos"), motion_data, steps=STEPS)


def test_a_training_that_is_killed_again_and_again_ends_like_one_that_is_not(runs):
    faults = [
        Fault("term one", 0.35, victim=1),
        Fault("full disk" if runs.can_mount() else "kill all", 0.5, victim=0),
    ]
    said: list[str] = []
    survive(0, faults, runs, said.append)
    assert len(said) == len(faults)
    if not runs.can_mount():
        pytest.skip("all but a full disk, since this user may not mount a tmpfs")


def test_one_in_a_bucket_is_the_same_and_is_used_from_there(runs, emulator, bucket, monkeypatch, capsys):
    monkeypatch.setattr(runs, "emulator", emulator)
    said: list[str] = []
    url = survive(1, [Fault("kill in save", 0.3, victim=0)], runs, said.append).workdir
    assert "statuses [-9," in said[0]

    classifier, whole = inti_jax.load(url), inti_jax.load(runs.directory / "whole" / "run")
    video = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(classifier(video), whole(video))
    assert commands.report(url, "--out", f"{bucket}/report") == 0
    assert commands.evaluate(url) == 0
    assert "top-1" in capsys.readouterr().out
    assert sorted(emulator.names(bucket.removeprefix("gs://bucket/"))) == [
        f"{bucket.removeprefix('gs://bucket/')}/report/{name}" for name in ("report.html", "report.json")
    ]
    found = evaluations.read(mirrors.mirror(url))
    assert [each.step for each in found] == [STEPS // 2, STEPS]
