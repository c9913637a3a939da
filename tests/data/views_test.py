import logging

import pytest

from inti_jax.config import ConfigError, Eval
from inti_jax.data import views
from inti_jax.data.dataset import open_dataset
from tests.configs import tiny


@pytest.fixture
def dataset(motion_data):
    return open_dataset("motion_digits", motion_data, "val")  # 19 frames of 64 x 64


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, Eval(crops=3), "`eval.crops` is 3, but all views are the same: every video of `val`"),
        ({"data__resolution": (32, 32)}, Eval(crops=3), "has the shape of `data.resolution`. Set it to 1"),
        (
            {"data__num_frames": 20},
            Eval(clips=2),
            "`eval.clips` is 2, but all views are the same",
        ),
        # Five starts are possible, so of six clips two are the same.
        ({"data__num_frames": 8}, Eval(clips=6), "`eval.clips` is 6"),
    ],
)
def test_views_that_repeat_each_other_are_refused(dataset, changes, settings, message):
    with pytest.raises(ConfigError) as caught:
        views.check(dataset, tiny(**changes).data, settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "resolution"), [(Eval(), 32), (Eval(clips=5), 32), (Eval(crops=3), (32, 40))], ids=str
)
def test_views_that_differ_pass_silently(dataset, settings, resolution, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("inti_jax"), "propagate", True)
    views.check(dataset, tiny(data__resolution=resolution).data, settings)
    assert not caplog.records
