import importlib
import sys

import pytest

from inti_jax import config
from inti_jax.errors import UserError
from inti_jax.runs.record import RunRecord
from inti_jax.runs.writers import metrics_writer
from inti_jax.runs.writers.jsonl import JsonLines, read_metrics
from inti_jax.runs.writers.metrics_writer import MetricsWriter
from inti_jax.runs.writers.protocol import scalars
from inti_jax.training import loop
from tests.configs import record, tiny


def chosen(*names):
    return tiny(train__writers=names)


def test_metrics_jsonl_is_always_written_and_the_others_as_chosen(tmp_path):
    for names in ((), ("tensorboard",)):
        workdir = tmp_path / "-".join(["run", *names])
        workdir.mkdir()
        writer = MetricsWriter(workdir, chosen(*names))
        writer.write(1, "train", {"loss": 1.0})
        writer.close()
        assert [each["loss"] for each in read_metrics(workdir)] == [1.0]
        assert (workdir / "tensorboard").exists() == ("tensorboard" in names)


def test_only_the_first_process_writes(monkeypatch, tmp_path):
    monkeypatch.setattr(metrics_writer.jax, "process_index", lambda: 1)
    writer = MetricsWriter(tmp_path, chosen("tensorboard"))
    writer.write(1, "train", {"loss": 1.0})
    writer.settle()
    writer.close()
    assert not any(tmp_path.iterdir())


def test_where_one_cannot_be_opened_the_others_are_closed(monkeypatch, tmp_path):
    closed = []
    monkeypatch.setattr(JsonLines, "close", lambda self: closed.append(self))
    (tmp_path / "tensorboard").touch()  # a file, where a directory should be
    with pytest.raises(FileExistsError):
        MetricsWriter(tmp_path, chosen("tensorboard"))
    assert len(closed) == 1


def test_curves_are_finite_numbers_named_by_split_and_variant():
    figures = {"top1": 0.5, "loss": float("nan"), "dataset": "a", "evaluated": 3}
    assert scalars("val", figures, ("3 x 1 views",)) == {
        "val_3_x_1_views/top1": 0.5,
        "val_3_x_1_views/evaluated": 3,
    }


def test_a_library_that_is_not_installed_ends_the_run_before_it_starts(monkeypatch, tmp_path):
    (tmp_path / "wandb").mkdir()  # as wandb leaves it behind in the current directory
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    with pytest.raises(UserError, match=r"`train\.writers` has 'wandb'.*pip install 'inti_jax\[wandb\]'"):
        loop.train(chosen("wandb"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    metrics_writer.check(chosen("tensorboard"))


def test_an_unknown_writer_is_named():
    with pytest.raises(
        config.ConfigError, match=r"`train\.writers\.0` is 'wandbb': it should be 'tensorboard'"
    ):
        chosen("wandbb")


def test_a_run_may_go_on_with_other_writers_also_one_of_an_earlier_version(tmp_path):
    values = record(tiny()).to_json()
    del values["train"]["writers"]
    earlier = RunRecord.from_json(values, tmp_path)
    assert earlier.config.train.writers == ("tensorboard",)
    record(chosen("wandb")).check_continues(earlier, tmp_path)
