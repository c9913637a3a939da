"""Check that checkpoints in a bucket are kept, verified and restored as those on a disk are."""

import logging

import pytest

from inti_jax.errors import UserError
from inti_jax.host import mirrors, stores
from inti_jax.runs import checkpoint, layout
from inti_jax.runs.checkpoint import CheckpointManager
from tests.checkpoints import evaluated, little_state, save, value_at
from tests.stores.emulator import Faults


@pytest.fixture
def workdir(bucket):
    return mirrors.mirror(f"{bucket}/run")


def steps(bucket):
    """The directories of checkpoints that the store has."""
    return sorted({name.split("/")[0] for name in stores.entries(f"{bucket}/run/checkpoints")})


def put(url, content, tmp_path):
    (tmp_path / "content").write_bytes(content)
    stores.upload(tmp_path / "content", url)


def test_the_newest_and_the_best_are_kept_and_restored(bucket, workdir):
    evaluated(workdir, _1=0.6, _2=0.2, _3=0.1, _4=0.1)
    save(workdir, [1, 2, 3, 4], keep=2)
    assert steps(bucket) == ["1", "3", "4"]
    assert checkpoint.find(workdir) == 4 and value_at(workdir, 4) == 4
    assert checkpoint.find(workdir, "best") == 1 and value_at(workdir, 1) == 1


@pytest.mark.parametrize("how", ["flip", "truncate", "missing"])
def test_a_damaged_one_is_passed_over_and_set_aside(how, bucket, workdir, tmp_path, caplog):
    save(workdir, [2, 4])
    url = f"{bucket}/run/checkpoints/4"
    sizes = {name: entry.size for name, entry in stores.entries(url).items() if name.startswith("params/")}
    name = max(sizes, key=sizes.__getitem__)
    content = stores.read(f"{url}/{name}")
    if how == "missing":
        stores.delete(f"{url}/{name}")
    else:
        changed = content[:-1] if how == "truncate" else bytes([content[0] ^ 1]) + content[1:]
        put(f"{url}/{name}", changed, tmp_path)
    with caplog.at_level(logging.WARNING, "inti_jax"):
        assert checkpoint.find(workdir) == 2
    assert "the checkpoint of step 4 is damaged (" in caplog.text and name in caplog.text
    with CheckpointManager(workdir, checkpoint.config.Checkpoint(), start=2):
        assert steps(bucket) == ["2", "4.damaged"]
    save(workdir, [4])
    assert steps(bucket) == ["2", "4"] and value_at(workdir, 4) == 4


def test_one_without_its_checksums_is_none(bucket, workdir):
    """A kill leaves it so, whenever it comes: they are written last and deleted first."""
    save(workdir, [2])
    save(workdir, [4])
    stores.delete(f"{bucket}/run/checkpoints/4/checksums.json")
    assert checkpoint.steps(workdir) == [2] and checkpoint.find(workdir) == 2
    save(workdir, [4])
    assert steps(bucket) == ["2", "4"] and checkpoint.find(workdir) == 4 and value_at(workdir, 4) == 4
    stores.delete(f"{bucket}/run/checkpoints/2/checksums.json")
    with CheckpointManager(workdir, checkpoint.config.Checkpoint(), start=4):
        assert steps(bucket) == ["4"]


def test_a_bucket_whose_objects_may_not_be_deleted_is_told(bucket, workdir, emulator):
    evaluated(workdir)
    save(workdir, [1, 2], keep=2)
    emulator.faults = Faults(may_delete=False)
    with pytest.raises(UserError, match="that are not kept cannot be deleted"):
        save(workdir, [3], keep=2)
    emulator.faults = Faults()
    assert checkpoint.find(workdir) == 3
    save(workdir, [4], keep=2)
    assert steps(bucket) == ["3", "4"]


def test_a_save_that_the_store_refuses_is_told_and_loses_nothing(bucket, workdir, emulator):
    save(workdir, [2])
    with (
        pytest.raises(UserError, match=rf"{bucket}/run/checkpoints/4 cannot be written .*earlier ") as caught,
        CheckpointManager(workdir, checkpoint.config.Checkpoint(), start=2) as checkpoints,
    ):
        emulator.faults = Faults(may_write=False)
        checkpoints.save(4, little_state(4), {"next_step": 4, "bad": 0})
    assert "\n" not in str(caught.value)
    emulator.faults = Faults()
    assert checkpoint.find(workdir) == 2 and value_at(workdir, 2) == 2
    assert str(layout.checkpoint_dir(workdir)) == f"{bucket}/run/checkpoints"
