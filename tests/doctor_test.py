"""The doctor on a machine that is well, and on ones where one thing each is broken."""

import json
import shutil

import numpy as np
import pytest

from inti_jax.doctor import checkup
from inti_jax.host import limits
from inti_jax.runs.layout import checkpoint_dir
from tests.commands import call
from tests.configs import INTI, tiny
from tests.main_test import start
from tests.pretrained.weights import write_tiny

pytestmark = pytest.mark.usefixtures("shallow")

LARGE = {"array": np.zeros(2**20)}
LAYERS = (
    "packages", "decoder", "processes", "devices", "host", "mesh", "weights", "dataset", "workdir", "compile",
    "step", "checkpoint",
)  # fmt: skip


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(checkup, "_BURST_SECONDS", 0.1)


@pytest.fixture
def examine(tmp_path, monkeypatch):
    """The layers by name. What takes long, and is not what is broken, is left out."""

    def run(settings, workdir=None, *, without=()):
        for name in without:
            monkeypatch.setattr(checkup._Patient, name, lambda patient: "not tried")
        return {each.name: each for each in checkup.examine(settings, workdir, tmp_path).layers}

    return run


def test_all_is_well_here(tmp_path):
    workdir = tmp_path / "above" / "run"
    result = start("doctor", "--json", "--workdir", str(workdir))
    found = json.loads(result.stdout)  # and nothing else
    assert result.returncode == 0 and found["ok"], result.stdout + result.stderr
    assert [(each["name"], each["status"]) for each in found["layers"]] == [(name, "ok") for name in LAYERS]
    assert all(each["seconds"] >= 0 and each["detail"] and not each["remedy"] for each in found["layers"])
    assert not workdir.parent.exists()  # nothing is left behind


def test_what_a_run_left_is_left_alone(trained_run, motion_data, examine):
    before = sorted(trained_run.rglob("*"))
    found = examine(tiny(motion_data, **INTI), trained_run)
    assert all(each.status == "ok" for each in found.values()), found
    assert sorted(trained_run.rglob("*")) == before
    assert sorted(path.name for path in checkpoint_dir(trained_run).iterdir()) == ["2", "4"]


def only(found, name, *skipped):
    """The one layer that failed, where just these could not be tried for that."""
    failed = [each.name for each in found.values() if each.status == "failed"]
    assert failed == [name], found
    assert [each.name for each in found.values() if each.status == "skipped"] == list(skipped)
    assert all(name in found[each].detail or "needs" in found[each].detail for each in skipped)
    assert found[name].remedy
    return found[name]


def test_missing_weights(motion_data, tmp_path, examine):
    missing = tmp_path / "b16.safetensors"
    layer = only(
        examine(tiny(motion_data, model__pretrained=str(missing))), "weights", "compile", "step", "checkpoint"
    )
    assert str(missing) in layer.detail and "inti_jax.convert" in layer.remedy


def test_weights_of_another_backbone(motion_data, tmp_path, examine):
    path = write_tiny(tmp_path / "tiny.safetensors")
    settings = tiny(
        motion_data, model__pretrained=str(path), model__backbone="clip_vit_b16", data__resolution=224
    )
    layer = only(examine(settings), "weights", "compile", "step", "checkpoint")
    assert "clip_vit_b16" in layer.detail


def test_changed_weights(motion_data, tmp_path, examine):
    path = write_tiny(tmp_path / "tiny.safetensors")
    contents = bytearray(path.read_bytes())
    contents[-5] ^= 1
    path.write_bytes(contents)
    layer = only(
        examine(tiny(motion_data, model__pretrained=str(path))), "weights", "compile", "step", "checkpoint"
    )
    assert "was changed" in layer.detail


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"mesh__data": 4}, "8 devices"), ({"train__global_batch": 12}, "multiple of 8")],
)
def test_a_mesh_that_does_not_divide(changes, said, motion_data, examine):
    layer = only(examine(tiny(motion_data, **changes)), "mesh", "compile", "step", "checkpoint")
    assert said in layer.detail and "mesh.fsdp" in layer.remedy


def damaged(tmp_path, motion_data, change):
    shutil.copytree(motion_data, tmp_path / "damaged")
    (shard,) = tmp_path.glob("damaged/motion_digits/*/*train.array_record*")
    contents = bytearray(shard.read_bytes())
    shard.write_bytes(change(contents))
    return tiny(tmp_path / "damaged")


def garble(contents):
    contents[len(contents) // 2 : len(contents) // 2 + 20_000] = bytes(20_000)
    return contents


@pytest.mark.parametrize("change", [garble, lambda contents: contents[:1000]], ids=["garbled", "cut"])
def test_a_damaged_dataset(change, motion_data, tmp_path, examine):
    layer = only(examine(damaged(tmp_path, motion_data, change)), "dataset", "compile", "step", "checkpoint")
    assert "damaged" in layer.detail and "prepare --check" in layer.remedy


def test_no_dataset(tmp_path, examine):
    layer = only(examine(tiny(tmp_path / "none")), "dataset", "compile", "step", "checkpoint")
    assert "inti_jax.prepare motion_digits" in layer.detail


def test_a_workdir_that_cannot_be_written(motion_data, tmp_path, examine):
    (tmp_path / "file").write_text("")
    found = examine(tiny(motion_data), tmp_path / "file" / "run", without=("compile", "step"))
    layer = only(found, "workdir", "checkpoint")
    assert str(tmp_path / "file") in layer.detail and "--workdir" in layer.remedy


def test_too_little_room_for_checkpoints(motion_data, tmp_path, examine, monkeypatch):
    usage = type("Usage", (), {"free": 2**20})()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    # Enough to not fit, without training for it.
    monkeypatch.setattr(checkup._Patient, "step", lambda patient: setattr(patient, "state", LARGE) or "made")
    layer = only(examine(tiny(motion_data), without=("compile",)), "checkpoint")
    assert "GiB free" in layer.detail and "room" in layer.remedy


def test_packages_of_other_versions(motion_data, examine, monkeypatch):
    monkeypatch.setattr(checkup, "_requirements", lambda: ["jax>=99", "no-such-package>=1", "av>=1"])
    layer = only(examine(tiny(motion_data), without=("compile", "step", "checkpoint")), "packages")
    assert "jax is" in layer.detail and ">=99" in layer.detail and "no-such-package is not" in layer.detail


def test_what_is_broken_is_said_in_the_table_and_the_status(tmp_path):
    result = call(
        "doctor", "--config", "configs/quickstart.py", f"--config.data.data_dir={tmp_path}",
        "--config.mesh.data=4", "--config.model.pretrained=absent.safetensors",
    )  # fmt: skip
    assert result.returncode == 1 and "Traceback" not in result.stderr
    for text in ("mesh        failed", "weights     failed", "dataset     failed", "compile     skipped"):
        assert text in result.stdout
    assert "needs mesh, weights, dataset" in result.stdout


def test_a_mistake_in_the_config_is_the_callers(tmp_path):
    result = call("doctor", "--config", "configs/quickstart.py", "--config.mesh.dta=3")
    assert result.returncode == 2 and "did you mean `data`?" in result.stderr


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_devices_that_are_not_there_leave_a_table(platform, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    result = start("doctor", "--json")
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    found = {each["name"]: each for each in json.loads(result.stdout)["layers"]}
    assert list(found) == list(LAYERS)
    assert f"JAX_PLATFORMS={platform}: JAX finds no such devices" in found["devices"]["detail"]
    assert "JAX_PLATFORMS=cpu" in found["devices"]["detail"] and found["devices"]["remedy"]
    well = {name for name, each in found.items() if each["status"] == "ok"}
    assert well == {"packages", "decoder", "processes", "host", "weights", "dataset", "workdir"}
    assert found["mesh"]["detail"] == "needs devices"


def test_a_jax_that_cannot_be_imported_leaves_a_table(tmp_path, monkeypatch):
    (tmp_path / "jax.py").write_text("raise RuntimeError('jaxlib is too old')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = start("doctor")
    assert result.returncode == 1 and "Traceback (most recent call last)" in result.stderr  # in the log
    assert "processes   failed" in result.stdout and "jaxlib is too old" in result.stdout
    assert "devices     skipped" in result.stdout and "decoder     ok" in result.stdout
    assert "layers fail" in result.stdout


def test_flags_that_make_no_sense_are_the_callers():
    result = call("doctor", "--process_id", "3")
    assert result.returncode == 2 and "give all three, or none of them" in result.stderr
    assert not result.stdout


def test_too_few_open_files_for_the_workers(motion_data, examine, monkeypatch):
    monkeypatch.setattr(limits, "file_limits", lambda: (256, 1024))
    settings = tiny(motion_data, data__workers=200)
    layer = only(examine(settings, without=("dataset", "compile", "step", "checkpoint")), "host")
    assert "200 workers and the run take" in layer.detail and "the hard limit is 1024" in layer.detail
    assert "data.workers" in layer.remedy
