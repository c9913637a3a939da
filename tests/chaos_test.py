"""One training of two processes, killed three times in a row; `python -m tests.chaos` does so to dozens."""

import pytest

from tests.chaos import Fault, Runs, survive


def test_a_training_that_is_killed_again_and_again_ends_like_one_that_is_not(motion_data, tmp_path):
    runs = Runs(tmp_path, motion_data)
    faults = [
        Fault("term one", 0.5, victim=1),
        Fault("kill in save", 0.3, victim=0),
        Fault("full disk" if runs.can_mount() else "kill all", 0.6, victim=0),
    ]
    said: list[str] = []
    survive(0, faults, runs, said.append)
    assert len(said) == len(faults)
    if not runs.can_mount():
        pytest.skip("all but a full disk, since this user may not mount a tmpfs")
