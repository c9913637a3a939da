"""Check datasets in buckets: preparing, reading and copying them gives what a disk gives, or one line."""

import asyncio
import dataclasses
import json
import logging
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from inti_jax import bench
from inti_jax.config import Data
from inti_jax.data import copies, dataset, manifest, pipeline, remote
from inti_jax.data.builders import base
from inti_jax.data.builders.motion_digits import MotionDigits
from inti_jax.data.codec.decode import DecodeError
from inti_jax.errors import UserError
from inti_jax.host import stores
from tests.commands import prepare
from tests.stores.emulator import BUCKET, Faults

SHARD_BYTES = 100_000  # a handful of videos: 6 and 3 shards
NAME = "motion_digits"
CFG = Data(name=NAME, data_dir="", num_frames=4, stride=2, resolution=32, workers=0)


@pytest.fixture(autouse=True)
def small_shards_and_no_waiting(monkeypatch):
    import gcsfs.retry

    async def at_once(_: float) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(gcsfs.retry, "asyncio", types.SimpleNamespace(sleep=at_once))
    monkeypatch.setattr(base, "_SHARD_BYTES", SHARD_BYTES)
    monkeypatch.setattr(copies, "_AGAIN", 0.05)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory) -> Path:
    data_dir = tmp_path_factory.mktemp("on_disk")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(base, "_SHARD_BYTES", SHARD_BYTES)
        build(data_dir)
    return data_dir


def build(data_dir: Path) -> None:
    MotionDigits(data_dir=data_dir, movements={"train": 20, "val": 10}).build()


def put(data_dir: Path, url: str) -> str:
    """Copy what is on the disk into the bucket."""
    for path in data_dir.rglob("*"):
        if path.is_file():
            stores.upload(path, f"{url}/{path.relative_to(data_dir)}")
    return url


@pytest.fixture
def in_bucket(on_disk, bucket) -> str:
    return put(on_disk, f"{bucket}/data")


def contents(data_dir: Path) -> dict[str, bytes]:
    files = (path for path in data_dir.rglob("*") if path.is_file())
    return {path.relative_to(data_dir).as_posix(): path.read_bytes() for path in files}


def contents_of(emulator, url: str) -> dict[str, bytes]:
    below = url.removeprefix(f"gs://{BUCKET}/") + "/"
    return {name.removeprefix(below): emulator.read(name) for name in emulator.names(below)}


def shards(data_dir: Path, split: str = "train") -> tuple[manifest.Shard, ...]:
    return manifest.read(data_dir / NAME / "1.0.0").splits[split].shards


# Preparing.


def test_prepared_in_a_bucket_it_is_the_same_with_a_shard_at_a_time_here(
    on_disk, bucket, emulator, monkeypatch, capsys
):
    staging, taken, upload = stores.stand_in(f"{bucket}/data"), [], stores.upload

    def watched(path, url):
        taken.append(sum(path.stat().st_blocks * 512 for path in staging.rglob("*.array_record-*")))
        upload(path, url)

    monkeypatch.setattr(stores, "upload", watched)
    build(staging)
    assert contents_of(emulator, f"{bucket}/data") == contents(on_disk)
    sizes = [path.stat().st_size for path in on_disk.rglob("*.array_record-*")]
    assert len(sizes) > 6 and max(taken) < 1.5 * max(sizes)

    left = f"{bucket}/data/{NAME}/1.0.0.partial"
    upload(on_disk / NAME / "1.0.0" / manifest.FILE_NAME, f"{left}/plan.json")
    assert prepare(NAME, "--data_dir", f"{bucket}/data") == 0
    assert not stores.entries(left)
    assert f"delete {bucket}/data/{NAME}/1.0.0 or" in capsys.readouterr().out
    assert prepare("--check", f"{bucket}/data/{NAME}") == 0
    assert prepare("--describe", f"{bucket}/data/{NAME}/1.0.0", "--json") == 0
    spoilt = on_disk / NAME / "1.0.0" / shards(on_disk)[1].file
    upload(spoilt, f"{bucket}/data/{NAME}/1.0.0/{shards(on_disk)[0].file}")
    stores.delete(f"{bucket}/data/{NAME}/1.0.0/{shards(on_disk)[2].file}")
    assert prepare("--check", f"{bucket}/data/{NAME}/1.0.0") == 1
    said = capsys.readouterr().out
    assert (
        f"{shards(on_disk)[0].file} was changed" in said and f"{shards(on_disk)[2].file} is missing" in said
    )


_KILLED = f"""
import os, signal
from inti_jax.data.builders import base, motion_digits
from inti_jax.host import stores
base._SHARD_BYTES = {SHARD_BYTES}
upload = stores.upload
def deadly(path, url):
    upload(path, url)
    if "journal/" in url and "00002-of" in url:
        os.kill(os.getpid(), signal.SIGKILL)
stores.upload = deadly
motion_digits.MotionDigits(data_dir=stores.stand_in("URL"), movements={{"train": 20, "val": 10}}).build()
"""


def test_killed_between_two_shards_it_goes_on_over_faults(on_disk, bucket, emulator, capsys):
    url = f"{bucket}/data"
    killed = subprocess.run([sys.executable, "-c", _KILLED.replace("URL", url)], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert dataset.find_dataset(NAME, url) is None
    there = [
        name for name in emulator.names() if f"{url}/{NAME}/1.0.0/".removeprefix(f"gs://{BUCKET}/") in name
    ]
    assert len(there) == 3
    before = [emulator.generation(BUCKET, name) for name in there]
    emulator.faults = Faults(unavailable=0.1, cut=0.05)
    build(stores.stand_in(url))
    assert "train: 3 of 6 shards are already written" in capsys.readouterr().err
    assert [emulator.generation(BUCKET, name) for name in there] == before
    assert contents_of(emulator, url) == contents(on_disk)


# Reading.


def batches(opened, cfg):
    with pipeline.train_batches(opened, cfg, seed=0, global_batch=8, num_steps=6) as found:
        return [next(found) for _ in range(6)]


def examples(opened):
    return [opened[index] for index in range(len(opened))]


def equal(found, expected):
    return all(
        np.array_equal(one[key], other[key])
        for one, other in zip(found, expected, strict=True)
        for key in one.keys() | other.keys()
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_those_of_the_disk(workers, on_disk, in_bucket, emulator):
    expected = batches(dataset.open_dataset(NAME, on_disk, "train"), CFG)
    emulator.faults = Faults() if workers else Faults(unavailable=0.03, cut=0.03)
    cfg = dataclasses.replace(CFG, data_dir=in_bucket, workers=workers)
    assert equal(batches(dataset.open_configured(cfg, "train"), cfg), expected)


def test_a_damaged_record_is_a_damaged_clip_and_a_bucket_that_fails_is_not(
    on_disk, in_bucket, emulator, tmp_path, monkeypatch
):
    here, there = (dataset.open_dataset(NAME, place, "train") for place in (on_disk, in_bucket))
    assert examples(there) == examples(here)
    first = shards(on_disk)[0]
    url = f"{in_bucket}/{NAME}/1.0.0/{first.file}"
    spoilt = bytearray((on_disk / NAME / "1.0.0" / first.file).read_bytes())
    spoilt[20_000] ^= 1
    (tmp_path / "spoilt").write_bytes(spoilt)
    stores.upload(tmp_path / "spoilt", url)
    with pytest.raises(DecodeError, match=r"record [0-9] of `train` in .* cannot be read: Corrupted"):
        [there[index] for index in range(first.count)]

    emulator.faults = Faults(may_read=False)
    with pytest.raises(UserError, match=f"{url}: no permission"):
        there[0]
    stores._filesystem.cache_clear()
    emulator.faults = Faults()
    stores.delete(url)
    with pytest.raises(UserError, match=f"{url} does not exist"):
        there[0]
    monkeypatch.setattr(remote, "_LONGEST", 0.3)
    monkeypatch.setattr(remote, "_AFTERWARDS", 0.3)
    emulator.faults = Faults(unavailable=1)
    with pytest.raises(UserError, match=r"cannot be reached: no answer in 0\.3 s"):
        there[first.count]
    emulator.faults = Faults()
    assert there[first.count] == here[first.count]


def test_what_is_not_there_is_one_line(in_bucket, bucket, emulator):
    for place, message in (
        ("gs://absent-bucket/data", "there is no bucket `absent-bucket`"),
        (f"{bucket}/other", f"`{NAME}` is not in {bucket}/other: run .* found there: no dataset"),
        ("https://example.com/data", "the web can only be read from"),
        ("s3://b/data", "s3://b/data: datasets lie on a disk or in gs:// alone, since ArrayRecord opens no"),
    ):
        with pytest.raises(UserError, match=message):
            dataset.open_dataset(NAME, place, "train")
    with pytest.raises(UserError, match=f"`folder` is not in {in_bucket}.* found there: {NAME}"):
        dataset.open_dataset("folder", in_bucket, "train")
    for faults, message in (
        (Faults(may_read=False), "may not be read|no permission"),
        (Faults(unavailable=1), "not available"),
    ):
        emulator.faults = faults
        with pytest.raises(UserError, match=message) as caught:
            dataset.open_dataset(NAME, in_bucket, "train")
        assert "\n" not in str(caught.value)


# Copies.


@pytest.fixture
def cfg(in_bucket, tmp_path):
    yield dataclasses.replace(CFG, data_dir=in_bucket, cache_dir=str(tmp_path / "cache"))
    release()


def release():
    """End the use of all datasets, as the end of a process does."""
    while copies._used:
        copies._used.popitem()[1].close()


def taken(cache: str) -> int:
    return sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())


def test_copies_are_whole_over_faults_and_then_the_bucket_is_not_needed(on_disk, cfg, emulator, caplog):
    expected = examples(dataset.open_dataset(NAME, on_disk, "train"))
    emulator.faults = Faults(unavailable=0.1, cut=0.1, spoilt=shards(on_disk)[1].file)
    opened = dataset.open_configured(cfg, "train")
    assert opened.read_from.startswith("gs://")
    assert examples(opened) == expected
    opened.copying.join()
    assert emulator.faults.spoilt == "" and opened.read_from.startswith(cfg.cache_dir)
    hashes = {shard.file: shard.sha256 for shard in shards(on_disk)}
    found = {path.name: manifest.file_sha256(path) for path in Path(cfg.cache_dir).rglob("*.array_record-*")}
    assert found == hashes

    emulator.faults = Faults(unavailable=1)
    assert examples(opened) == expected
    with caplog.at_level(logging.WARNING, logger="inti_jax"):
        again = dataset.open_configured(cfg, "train")
    assert "going on with the copy in" in caplog.text
    assert examples(again) == expected
    with pytest.raises(UserError, match="cannot be reached"):  # of which there is no copy
        dataset.open_configured(cfg, "val")


def test_copies_stay_within_the_bound_and_those_in_use_stay(on_disk, cfg, bucket, emulator, caplog):
    size = sum(path.stat().st_size for path in on_disk.rglob("*train.array_record-*"))
    some = 4 / 6 * size / 1e9
    opened = dataset.open_configured(dataclasses.replace(cfg, cache_gb=some), "train")
    opened.copying.join()
    said = [record.message for record in caplog.records if "has room for" in record.message]
    assert len(said) == 1 and "of the 6 shards of `train`, with data.cache_gb" in said[0]
    assert 0 < len(list(Path(cfg.cache_dir).rglob("*.array_record-*"))) < 6
    assert taken(cfg.cache_dir) <= some * 1e9
    assert examples(opened) == examples(dataset.open_dataset(NAME, on_disk, "train"))

    # Another dataset gets no room from one that is in use, and all of it from one that is not.
    other = dataclasses.replace(cfg, data_dir=put(on_disk, f"{bucket}/other"), cache_gb=some)
    first = set(Path(cfg.cache_dir).rglob("*.array_record-*"))
    dataset.open_configured(other, "val").copying.join()
    assert first <= set(Path(cfg.cache_dir).rglob("*.array_record-*"))
    release()
    whole = dataset.open_configured(other, "val")
    whole.copying.join()
    assert whole.copying.whole and taken(cfg.cache_dir) <= some * 1e9


def test_bench_measures_the_bucket_and_then_the_copies(in_bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("inti_jax.host.limits.cores", lambda: 1)
    arguments = ["bench", "--name", NAME, "--data_dir", in_bucket, "--clips", "4", "--json"]
    settings = ["--config", "configs/quickstart.py", f"--config.data.cache_dir={tmp_path / 'cache'}"]
    monkeypatch.setattr("sys.argv", [*arguments, *settings])
    bench.main()
    found = json.loads(capsys.readouterr().out)
    assert found["read_from"] == f"{in_bucket}/{NAME}/1.0.0"
    assert found["cache"]["read_from"].startswith(str(tmp_path / "cache"))
    assert all(one["rates"][0]["clips_per_second"] > 0 for one in (found, found["cache"]))
    release()
