"""Checkpoints: which are kept and used, what a fault leaves, and other meshes."""

import contextlib
import io
import logging
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import inti_jax
from inti_jax import config
from inti_jax.config import Mesh
from inti_jax.distributed import sharding
from inti_jax.errors import UserError
from inti_jax.evaluation import evaluate
from inti_jax.host import paths
from inti_jax.models import parameters
from inti_jax.runs import checkpoint, layout, state, trained
from inti_jax.runs.checkpoint import CheckpointManager
from inti_jax.runs.record import RunRecord
from inti_jax.runs.state import TrainState
from inti_jax.runs.writers.jsonl import read_metrics
from inti_jax.training import loop
from tests.checkpoints import evaluated, save, value_at
from tests.commands import convert
from tests.configs import INTI, tiny
from tests.records import computed

pytestmark = pytest.mark.usefixtures("shallow", "unreported")

ONE = sharding.make_mesh(Mesh(), jax.devices()[:1])


def checkpoint_dir(workdir):
    return Path(layout.checkpoint_dir(workdir))


def names(workdir):
    return sorted(path.name for path in checkpoint_dir(workdir).iterdir())


# Which are kept, and which is used.


def test_the_newest_are_kept_and_the_best(tmp_path):
    writer = evaluated(tmp_path, _1=0.2, _2=0.6, _3=0.6, _4=0.1)
    # Another evaluation, not the run's own: of more views it says nothing about which step is best.
    writer.write(1, "val", {"top1": 0.9, "views": 3, "dataset": "0"})
    writer.write(4, "val", {"top1": 0.9, "views": 1, "dataset": "another"})
    save(tmp_path, [1, 2, 3, 4, 5, 6], keep=2, keep_best=1)
    assert names(tmp_path) == ["3", "5", "6"]
    assert checkpoint.find(tmp_path) == 6 and checkpoint.find(tmp_path, "best") == 3
    assert checkpoint.find(tmp_path, 5) == 5 and value_at(tmp_path, 5) == 5
    with pytest.raises(UserError, match=r"no checkpoint of step 4; it has: 3, 5, 6"):
        checkpoint.find(tmp_path, 4)


def test_none_is_the_best_where_none_was_evaluated(tmp_path):
    evaluated(tmp_path)
    save(tmp_path, [1, 2, 3], keep=2, keep_best=0)
    assert names(tmp_path) == ["2", "3"]
    with pytest.raises(UserError, match="no evaluated checkpoint"):
        checkpoint.find(tmp_path, "best")
    assert checkpoint.find(tmp_path / "nowhere") is None


def test_what_was_left_unfinished_goes_and_what_is_foreign_stays(tmp_path):
    save(tmp_path, [2])
    directory = checkpoint_dir(tmp_path)
    for name in ("4.orbax-checkpoint-tmp", "4.partial", "1", "1.old", "notes", "07", "4.partially"):
        (directory / name).mkdir()
    (directory / "README").write_text("mine")
    assert checkpoint.find(tmp_path) == 2  # which changes nothing
    assert len(names(tmp_path)) == 9
    save(tmp_path, [4])
    assert names(tmp_path) == ["07", "2", "4", "4.partially", "README", "notes"]


# Damage.


def damaged(data, how):
    if how == "flip":
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    return data[: len(data) // 2]


@pytest.mark.parametrize("how", ["flip", "truncate", "missing", "empty directory", "no sums"])
def test_a_damaged_checkpoint_is_passed_over(how, tmp_path, caplog):
    save(tmp_path, [2, 4])
    newest = checkpoint_dir(tmp_path) / "4"
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    assert len(files) > 10
    if how in ("empty directory", "no sums"):
        gone = files if how == "empty directory" else [newest / "checksums.json"]
        for path in gone:
            path.unlink()
        files = []
        with caplog.at_level(logging.WARNING, "inti_jax"):
            assert checkpoint.find(tmp_path) == 2
        assert "step 4 is damaged (checksums.json is missing): using the one of step 2" in caplog.text
    for path in files:
        whole = path.read_bytes()
        if not whole and how != "missing":
            continue  # an empty file, whose name is what it says
        if how == "missing":
            path.unlink()
        else:
            path.write_bytes(damaged(whole, how))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "inti_jax"):
            assert checkpoint.find(tmp_path) == 2, path
        (line,) = caplog.messages
        assert "the checkpoint of step 4 is damaged (" in line and "\n" not in line
        assert path.name in line or path.name == "checksums.json"  # whose damage may look like another file's
        path.write_bytes(whole)
        assert checkpoint.find(tmp_path) == 4


def test_none_that_is_whole_is_an_error_of_one_line(tmp_path):
    save(tmp_path, [2, 4])
    for step in (2, 4):
        (checkpoint_dir(tmp_path) / str(step) / "params" / "manifest.ocdbt").unlink()
    with pytest.raises(UserError, match=r"no intact checkpoint \(step 4: params/manifest") as caught:
        checkpoint.find(tmp_path)
    assert "\n" not in str(caught.value) and "step 2: " in str(caught.value)
    with pytest.raises(UserError, match=r"step 2: .*choose another step"):
        checkpoint.find(tmp_path, 2)


def test_a_run_goes_on_before_its_damaged_checkpoint_and_saves_that_step_again(
    motion_data, trained_run, tmp_path, caplog
):
    workdir = tmp_path / "run"
    shutil.copytree(trained_run, workdir)
    settings = RunRecord.read(workdir).config
    newest = checkpoint_dir(workdir) / "4"
    largest = max((newest / "params").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(damaged(largest.read_bytes(), "flip"))
    with pytest.raises(UserError, match=r"step 4: params/.*checksum differs"):
        trained.load(workdir, ONE, step=4)
    with caplog.at_level(logging.INFO, "inti_jax"):
        loop.train(settings, workdir)
    assert "the checkpoint of step 4 is damaged" in caplog.text
    assert "resuming from the checkpoint of step 2" in caplog.text
    assert names(workdir) == ["2", "4"] and checkpoint.find(workdir) == 4
    assert computed(workdir) == computed(trained_run)
    # The best is used where users ask for it.
    assert inti_jax.load(workdir, step="best").labels == inti_jax.load(workdir).labels
    evaluate.evaluate_run(settings, workdir, 2)
    assert read_metrics(workdir)[-1]["step"] == 2


def test_one_that_cannot_be_written_is_an_error_of_one_line_and_none_for_a_checkpoint(
    tmp_path, caplog, capfd
):
    """A file size limit is how a test fills a disk: Orbax meets the same refusal of a write."""
    save(tmp_path, [2])
    noise = jax.random.normal(jax.random.key(0), (2**19,))  # 2 MB, which do not compress
    large = TrainState(jax.numpy.int32(4), {"head.bias": noise}, {}, {"mu": noise})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with (
            pytest.raises(UserError, match=r"checkpoints/4 cannot be written \(File too large\)") as caught,
            CheckpointManager(tmp_path, config.Checkpoint(), start=2) as checkpoints,
        ):
            checkpoints.save(4, large, {"next_step": 4, "bad": 0})
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                checkpoints.check()  # as the loop does after each step
                time.sleep(0.01)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in caplog.text + capfd.readouterr().err
    assert checkpoint.find(tmp_path) == 2 and len(names(tmp_path)) == 2
    save(tmp_path, [4])
    assert names(tmp_path) == ["2", "4"] and value_at(tmp_path, 4) == 4


def test_the_others_hear_of_it_where_old_ones_cannot_be_deleted(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(checkpoint.liveness, "tell_failed", told.append)
    evaluated(tmp_path).close()
    layout.metrics_path(tmp_path).write_text("damaged\n")  # so that the best is not known
    with pytest.raises(UserError, match=r"not kept cannot be deleted \(.*line 1 is not a record") as caught:
        save(tmp_path, [1, 2, 3], keep=2, keep_best=1)
    assert told == [str(caught.value)]
    assert names(tmp_path) == ["1", "2", "3"]  # the new one is whole


# Any path.

HOSTILE = os.fsdecode(b"run[1] *?\\ {%s} #%25:$~\n\xff\xc3 \xf0\x9f\x98\x80")


@pytest.mark.parametrize("name", ["run[1]", "back\\slash", "a*", HOSTILE], ids=ascii)
def test_a_checkpoint_below_any_name_is_restored(name, tmp_path):
    workdir = tmp_path / name / "run"
    evaluated(workdir)
    save(workdir, [2, 4, 6], keep=2)
    assert names(workdir) == ["4", "6"] and value_at(workdir, 6) == 6
    moved = workdir.rename(tmp_path / "plain")
    assert checkpoint.find(moved) == 6 and value_at(moved, 4) == 4


def test_a_run_below_any_name_goes_on_and_is_used(motion_data, trained_run, tmp_path):
    workdir = tmp_path / HOSTILE
    shutil.copytree(trained_run, workdir)
    shutil.rmtree(checkpoint_dir(workdir) / "4")
    data_dir = tmp_path / "data[1]{} %25\\"
    data_dir.symlink_to(motion_data)
    settings = tiny(data_dir, **INTI, eval__clips=2)
    loop.train(settings, workdir)
    assert computed(workdir) == computed(trained_run)
    ours, theirs = (trained.load(path, ONE, step=4).params for path in (workdir, trained_run))
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)

    evaluate.evaluate_run(settings, workdir)
    video = np.zeros((8, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(inti_jax.load(workdir)(video), inti_jax.load(trained_run)(video))
    out = tmp_path / f"{HOSTILE}.safetensors"
    # Text alone: what pytest captures has to be UTF-8.
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()):
        assert convert(workdir, "--to", "trained", "--out", out) == 0
    assert str(out) in said.getvalue()
    np.testing.assert_array_equal(inti_jax.load(out)(video), inti_jax.load(trained_run)(video))


@pytest.mark.parametrize("part", ["manifest.ocdbt", "_METADATA", "d"])
def test_what_orbax_could_not_restore_is_no_checkpoint(part, tmp_path, monkeypatch):
    """Whatever the cause: here files are gone before the checkpoint gets its name."""
    save(tmp_path, [2])
    finish = CheckpointManager._finish

    def lose(self, step, writing, *arguments):
        writing.result()
        (lost,) = checkpoint_dir(tmp_path).glob(f"4/params/{part}")
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
        finish(self, step, writing, *arguments)

    monkeypatch.setattr(CheckpointManager, "_finish", lose)
    with pytest.raises(
        UserError, match=r"checkpoints/4 cannot be written \(.*; earlier checkpoints are kept"
    ) as caught:
        save(tmp_path, [4])
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert checkpoint.find(tmp_path) == 2 and value_at(tmp_path, 2) == 2


def test_orbax_itself_is_seen_to_lose_arrays_below_brackets(tmp_path, monkeypatch):
    """It puts the directory into a glob; when it does so no more, `paths.plain` may go."""
    monkeypatch.setattr(paths, "plain", lambda directory, *_: contextlib.nullcontext(directory))
    with pytest.raises(
        UserError, match=r"run\[1\]/checkpoints/2 cannot be written \(.*earlier checkpoints are kept"
    ):
        save(tmp_path / "run[1]", [2])
    assert checkpoint.find(tmp_path / "run[1]") is None


# Other meshes.


@pytest.mark.parametrize(
    ("devices", "sizes"),
    [(1, Mesh()), (2, Mesh(fsdp=2)), (8, Mesh(data=2, fsdp=2, tensor=2)), (4, Mesh(data=1, tensor=4))],
    ids=str,
)
def test_a_checkpoint_is_restored_to_any_mesh(devices, sizes, trained_run):
    saved = trained.load(trained_run, sharding.make_mesh(Mesh(), jax.devices()[:1])).params
    mesh = sharding.make_mesh(sizes, jax.devices()[:devices])
    found = trained.load(trained_run, mesh)
    target = parameters.parameter_shapes(state.abstract_model(found.record))
    for path, where in sharding.parameter_shardings(target, mesh).items():
        assert found.params[path].sharding == where, path
        np.testing.assert_array_equal(found.params[path], saved[path], err_msg=path)


def test_a_run_goes_on_alike_on_another_mesh(motion_data, trained_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained_run, workdir)
    shutil.rmtree(checkpoint_dir(workdir) / "4")
    losses = {r["step"]: r["loss"] for r in read_metrics(workdir) if r["split"] == "train"}
    settings = tiny(motion_data, **INTI, eval__clips=2, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    loop.train(settings, workdir)
    again = {r["step"]: r["loss"] for r in read_metrics(workdir) if r["split"] == "train"}
    assert list(again) == [1, 2, 3, 4]
    for step in (3, 4):
        assert again[step] == pytest.approx(losses[step], abs=1e-5)


# Two at once.


def test_two_runs_do_not_work_in_one_directory(motion_data, trained_run, tmp_path):
    workdir = tmp_path / "run"
    settings = RunRecord.read(trained_run).config
    with layout.lock(workdir):
        with pytest.raises(UserError, match=r"run is in use by process \d+ on .*choose another --workdir"):
            loop.train(settings, workdir)
        with pytest.raises(UserError, match="is in use by"):
            evaluate.evaluate_run(settings, workdir)
    assert not workdir.exists()
