"""Weights & Biases in its offline mode: the file that `wandb sync` uploads holds the run."""

import itertools
import json
import logging
import time

import pytest

from inti_jax.runs import layout
from inti_jax.runs.writers.metrics_writer import MetricsWriter
from tests.configs import tiny

wandb = pytest.importorskip("wandb")

# The file is a log of LevelDB (doc/log_format.md there) behind a header of 7 bytes.
_HEADER, _BLOCK, _PIECE = 7, 2**15, 7


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    yield
    wandb.teardown()


def sent(workdir):
    """The records of each start, in the order of the starts."""
    from wandb.proto import wandb_internal_pb2

    starts = []
    for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
        data, at, record, found = path.read_bytes(), _HEADER, b"", []
        while at + _PIECE <= len(data):
            if _BLOCK - at % _BLOCK < _PIECE:  # too short for a piece, so it is filled with zeros
                at += _BLOCK - at % _BLOCK
                continue
            size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
            record += data[at + _PIECE : at + _PIECE + size]
            at += _PIECE + size
            if kind in (1, 4):  # whole, or the last piece
                found.append(wandb_internal_pb2.Record.FromString(record))
                record = b""
        starts.append(found)
    return starts


def curves(start):
    rows = [record.history.item for record in start if record.WhichOneof("record_type") == "history"]
    return [
        {
            name: json.loads(item.value_json)
            for item in row
            if not (name := item.key or ".".join(item.nested_key)).startswith("_")
        }
        for row in rows
    ]


def test_the_offline_file_holds_config_and_curves_of_one_run(tmp_path):
    settings = tiny(train__writers=("wandb",), train__seed=7)
    workdir = tmp_path / "mine"
    workdir.mkdir()
    expected = ((0, (1, 2, 3)), (2, (3, 2)))
    for from_step, steps in expected:
        writer = MetricsWriter(workdir, settings, from_step=from_step)
        for step in steps:
            writer.write(step, "train", {"loss": step / 8, "ids": ["a"]})
        writer.settle()
        writer.write(steps[-1], "val", {"top1": 0.5}, variant=("3 x 1 views",))
        writer.close()
        if from_step == 0:
            time.sleep(1.1)  # directories are named by the second

    wandb.teardown()  # as at a process's end: wandb's own process may write for a moment after a run's
    starts = sent(workdir)
    for start, (_, steps) in zip(starts, expected, strict=True):
        assert curves(start) == [
            *({"train/loss": step / 8, "step": step} for step in steps),
            {"val_3_x_1_views/top1": 0.5, "step": steps[-1]},
        ]
        run = next(record.run for record in start if record.WhichOneof("record_type") == "run")
        assert (run.run_id, run.project, run.display_name) == (
            layout.wandb_id_path(workdir).read_text().strip(),
            "inti_jax",
            "mine",
        )
        values = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert values["train"]["seed"] == 7 and values["model"]["backbone"] == "tiny"
        axes = [record.metric for record in start if record.WhichOneof("record_type") == "metric"]
        assert [(each.glob_name, each.step_metric) for each in axes if each.glob_name] == [("*", "step")]


@pytest.mark.parametrize("where", ["start", "write", "close"])
def test_a_failure_is_logged_once_and_ends_nothing(where, monkeypatch, tmp_path, caplog):
    calls = itertools.count()

    class Run:
        def define_metric(self, *_, **__):
            pass

        def log(self, figures):
            next(calls)
            if where == "write":
                raise wandb.errors.CommError("the network\nis down")

        def finish(self):
            if where == "close":
                raise wandb.errors.CommError("the network\nis down")

    def init(**_):
        if where == "start":
            raise wandb.errors.CommError("the network\nis down")
        return Run()

    monkeypatch.setattr(wandb, "init", init)
    with caplog.at_level(logging.WARNING):
        writer = MetricsWriter(tmp_path, tiny(train__writers=("wandb",)), from_step=0)
        for step in (1, 2):
            writer.write(step, "train", {"loss": 1.0})
        writer.close()
    assert caplog.messages == [
        "Weights & Biases receives no more records (the network is down); metrics.jsonl still does"
    ]
    assert next(calls) == {"start": 0, "write": 1, "close": 2}[where]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_without_a_key_the_run_goes_on(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    writer = MetricsWriter(tmp_path, tiny(train__writers=("wandb",)), from_step=0)
    writer.write(1, "train", {"loss": 1.0})
    writer.close()
    (message,) = caplog.messages
    assert message.startswith("Weights & Biases receives no more records (No API key configured.")
