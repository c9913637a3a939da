import dataclasses
import functools
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inti_jax import config
from inti_jax.data import pipeline
from inti_jax.data.codec import decode
from inti_jax.data.dataset import Example, FileDataset, open_dataset
from inti_jax.data.loading import batches, workers
from inti_jax.data.loading.workers import LoadingError
from inti_jax.errors import UserError
from inti_jax.host import limits, memory
from tests.data import clips
from tests.data.videos import BAD, CFG, Decoded, Videos


class Sided(Videos):
    labels = ("push", "turn left", "turn right")


@pytest.fixture(scope="module")
def videos():
    return Videos()


def _collect(videos, cfg=CFG, **changes):
    options = {"seed": 5, "global_batch": 4, "num_steps": 5} | changes
    with pipeline.train_batches(videos, cfg, **options) as batches:
        return list(batches)


def _rows(batch, host, hosts):
    share = batch // hosts
    return range(host * share, (host + 1) * share)


def _assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for batch, reference in zip(batches, expected, strict=True):
        for key in reference:
            np.testing.assert_array_equal(batch[key], reference[key])


@settings(deadline=None)
@given(
    size=st.integers(1, 40),
    host_batch=st.integers(1, 5),
    hosts=st.sampled_from([1, 2, 3, 4]),
    seed=st.integers(0, 99),
)
def test_each_epoch_is_a_permutation_over_all_hosts(size, host_batch, hosts, seed):
    batch = host_batch * hosts
    steps = -(-3 * size // batch)
    orders = [
        pipeline.TrainOrder(
            size, seed=seed, global_batch=batch, num_steps=steps, rows=_rows(batch, host, hosts)
        )
        for host in range(hosts)
    ]
    seen = []
    for step in range(steps):
        for order in orders:
            seen += [order[step * host_batch + row] for row in range(host_batch)]
    assert all(len(order) == steps * host_batch for order in orders)
    for epoch in range(3):
        rows = seen[epoch * size : (epoch + 1) * size]
        assert {row[0] for row in rows} == {epoch}
        assert sorted(row[1] for row in rows) == list(range(size))
    one_host = pipeline.TrainOrder(size, seed=seed, global_batch=batch, num_steps=steps)
    assert seen == [one_host[k] for k in range(len(one_host))]


@settings(deadline=None)
@given(
    size=st.integers(2, 40),
    videos=st.integers(2, 5),
    repeats=st.integers(2, 4),
    hosts=st.sampled_from([1, 2]),
)
def test_repeats_are_of_the_same_videos_and_never_neighbours(size, videos, repeats, hosts):
    batch, steps = videos * repeats * hosts, 3
    order = pipeline.TrainOrder(size, seed=0, global_batch=batch, num_steps=steps, repeats=repeats)
    once = pipeline.TrainOrder(size, seed=0, global_batch=batch // repeats, num_steps=steps)
    for step in range(steps):
        rows = [order[step * batch + row] for row in range(batch)]
        drawn = [once[step * batch // repeats + row][:2] for row in range(batch // repeats)]
        for repeat in range(repeats):
            own = rows[repeat * len(drawn) : (repeat + 1) * len(drawn)]
            assert own == [(*element, repeat) for element in drawn]
        if size >= len(drawn):
            assert all(a[1] != b[1] or a[0] != b[0] for a, b in itertools.pairwise(rows))


def test_repeats_are_cut_differently(videos):
    cfg = dataclasses.replace(CFG, repeats=2)
    with pipeline.train_batches(videos, cfg, seed=0, global_batch=4, num_steps=1) as batches:
        batch = next(batches)
    np.testing.assert_array_equal(batch["index"][:2], batch["index"][2:])
    np.testing.assert_array_equal(batch["label"][:2], batch["label"][2:])
    assert (batch["video"][:2] != batch["video"][2:]).any(axis=(1, 2, 3, 4)).all()


def test_epochs_and_seeds_have_their_own_order():
    order = pipeline.TrainOrder(50, seed=0, global_batch=50, num_steps=2)
    other = pipeline.TrainOrder(50, seed=1, global_batch=50, num_steps=2)
    first, second = [order[k][1] for k in range(50)], [order[50 + k][1] for k in range(50)]
    assert first != second
    assert first != [other[k][1] for k in range(50)]


def test_batches_hold_what_they_say(videos):
    batches = _collect(videos)
    assert [batch["video"].shape for batch in batches] == [(4, 4, 24, 24, 3)] * 5
    assert {key: array.dtype.name for key, array in batches[0].items()} == {
        "video": "uint8",
        "label": "int32",
        "mask": "bool",
        "index": "int32",
    }
    for batch in batches:
        np.testing.assert_array_equal(batch["label"], batch["index"] % 3)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_step_does_not_depend_on_threads(videos, threads):
    cfg = dataclasses.replace(CFG, workers=0, threads=threads, prefetch=1)
    _assert_equal(_collect(videos, cfg), _collect(videos))


@pytest.mark.parametrize(
    ("workers", "hosts", "start"), [(0, 1, 3), (0, 2, 0), (0, 2, 1), (1, 2, 3), (3, 1, 2)]
)
def test_a_step_does_not_depend_on_workers_hosts_or_where_the_run_started(videos, workers, hosts, start):
    cfg = dataclasses.replace(CFG, workers=workers)
    by_host = []
    for host in range(hosts):
        with pipeline.train_batches(
            videos, cfg, seed=5, global_batch=4, num_steps=5, rows=_rows(4, host, hosts)
        ) as batches:
            batches.set_state({"next_step": start})
            by_host.append(list(batches))
    joined = [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for parts in zip(*by_host, strict=True)
    ]
    _assert_equal(joined, _collect(videos)[start:])


def test_batches_can_be_set_to_another_step_at_any_time(videos):
    expected = _collect(videos)
    with pipeline.train_batches(videos, CFG, seed=5, global_batch=4, num_steps=5) as batches:
        for step in (3, 1, 5):
            batches.set_state({"next_step": step})
            _assert_equal(list(batches), expected[step:])


@pytest.mark.parametrize(
    ("backend", "cores", "batch", "workers"),
    [("cpu", 8, 16, 0), ("tpu", 8, 16, 7), ("gpu", 1, 16, 0), ("tpu", 96, 8, 16)],
)
def test_workers_are_chosen_by_cores_and_backend(monkeypatch, backend, cores, batch, workers):
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    monkeypatch.setattr("inti_jax.host.limits.cores", lambda: cores)
    assert batches.worker_count(CFG, batch) == workers
    assert batches.worker_count(dataclasses.replace(CFG, workers=3), batch) == 3


def test_a_worker_that_is_killed_is_replaced(videos, caplog, monkeypatch):
    monkeypatch.setattr(pipeline.log, "propagate", True)
    expected = _collect(videos, num_steps=40)
    cfg = dataclasses.replace(CFG, workers=2, prefetch=1)
    with pipeline.train_batches(videos, cfg, seed=5, global_batch=4, num_steps=40) as batches:
        seen = [next(batches) for _ in range(3)]
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        seen += list(batches)
    _assert_equal(seen, expected)
    (message,) = [message for message in caplog.messages if "restarting" in message]
    assert "killed by SIGKILL" in message


_ENDLESS = """
import dataclasses, multiprocessing, sys, time
from inti_jax.data import pipeline
from tests.data.videos import CFG, Videos

if __name__ == "__main__":
    cfg = dataclasses.replace(CFG, workers=2)
    batches = pipeline.train_batches(Videos(), cfg, seed=0, global_batch=2, num_steps=10_000)
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


def test_workers_end_with_a_run_that_is_killed(tmp_path):
    script = tmp_path / "endless.py"
    script.write_text(_ENDLESS)
    environment = os.environ | {"PYTHONPATH": "."}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment) as run:
        workers = [int(pid) for pid in run.stdout.readline().split()]
        run.kill()
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    try:
        while any(map(_runs, workers)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        for worker in filter(_runs, workers):
            os.kill(worker, signal.SIGKILL)


def _runs(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _deadly(video, indices, total=None):
    if multiprocessing.parent_process() and total == 16:
        os.kill(os.getpid(), signal.SIGSEGV)
    return decode.decode_frames(video, indices, total)


def test_workers_that_keep_dying_end_the_run_with_the_reason(monkeypatch):
    monkeypatch.setattr(workers, "_DEATHS", 2)
    cfg = dataclasses.replace(CFG, workers=1, threads=1)
    with (
        pipeline.train_batches(Decoded(_deadly), cfg, seed=5, global_batch=7, num_steps=5) as batches,
        pytest.raises(LoadingError, match=r"killed by SIGSEGV.* indices .*2") as caught,
    ):
        list(batches)
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()


def test_epochs_augment_differently(videos):
    rows = {}
    for batch in _collect(videos, num_steps=10):
        for index, video in zip(batch["index"], batch["video"], strict=True):
            rows.setdefault(int(index), []).append(video)
    assert any(not np.array_equal(first, second) for first, second, *_ in rows.values())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mirrored_clip_has_the_label_of_its_mirror_image(workers):
    cfg = dataclasses.replace(CFG, workers=workers)
    sided = Sided()
    batches = _collect(sided, cfg, num_steps=20)
    plain = _collect(sided, dataclasses.replace(CFG, flip=False), num_steps=20)
    mirrored = 0
    for batch, reference in zip(batches, plain, strict=True):
        np.testing.assert_array_equal(reference["label"], reference["index"] % 3)
        for row in np.flatnonzero(batch["mask"]):
            video, label = batch["video"][row], batch["label"][row]
            if np.array_equal(video, reference["video"][row]):
                assert label == reference["label"][row]
            else:
                np.testing.assert_array_equal(video[:, :, ::-1], reference["video"][row])
                assert label == (0, 2, 1)[reference["label"][row]]
                mirrored += 1
    assert 20 < mirrored < 50


def test_a_reversed_clip_has_the_label_of_what_it_shows():
    sided = Sided()
    plain = _collect(sided, num_steps=20)
    listed = ("turn right", "turn left")
    batches = _collect(sided, dataclasses.replace(CFG, reverse=True, reverse_labels=listed), num_steps=20)
    changed = 0
    for batch, reference in zip(batches, plain, strict=True):
        for row in np.flatnonzero(batch["mask"]):
            video, label = batch["video"][row], batch["label"][row]
            if label == reference["label"][row]:
                np.testing.assert_array_equal(video, reference["video"][row])
            else:
                np.testing.assert_array_equal(video[::-1], reference["video"][row])
                assert label == (0, 2, 1)[reference["label"][row]]
                changed += 1
    assert 15 < changed < 40


def test_only_clips_of_listed_labels_are_changed():
    sided = Sided()
    sided.labels = ("push", "pull", "turn")
    plain = _collect(sided, dataclasses.replace(CFG, flip=False), num_steps=10)
    changes = {"flip_labels": ("push",), "reverse": True, "reverse_labels": ("push", "pull")}
    batches = _collect(sided, dataclasses.replace(CFG, **changes), num_steps=10)
    seen = set()
    for batch, reference in zip(batches, plain, strict=True):
        for row in np.flatnonzero(batch["mask"]):
            now, before = batch["video"][row], reference["video"][row]
            same = {
                "plain": before,
                "mirrored": before[:, :, ::-1],
                "reversed": before[::-1],
                "both": before[::-1, :, ::-1],
            }
            (how,) = (name for name, video in same.items() if np.array_equal(video, now))
            seen.add((int(reference["label"][row]), int(batch["label"][row]), how))
    push = {(0, 0, "plain"), (0, 0, "mirrored"), (0, 1, "reversed"), (0, 1, "both")}
    assert seen == push | {(1, 1, "plain"), (1, 0, "reversed"), (2, 2, "plain")}


def test_labels_that_cannot_be_mirrored_are_refused_with_flips_alone():
    sided = Sided()
    sided.labels = ("push", "turn left", "turn")
    with pytest.raises(UserError, match="label `turn left`"):
        _collect(sided)
    assert len(_collect(sided, dataclasses.replace(CFG, flip=False))) == 5


def test_a_video_that_does_not_decode_is_masked_and_said_once(videos, caplog, monkeypatch):
    monkeypatch.setattr(pipeline.log, "propagate", True)
    pipeline._say_masked.cache_clear()
    with pipeline.train_batches(videos, CFG, seed=5, global_batch=7, num_steps=2) as batches:
        for batch in batches:
            np.testing.assert_array_equal(batch["mask"], batch["index"] != BAD)
            assert not batch["video"][batch["index"] == BAD].any()
            assert all(video.any() for video in batch["video"][batch["mask"]])
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"video {BAD} of the training split is masked: it does not decode")


def test_a_damaged_record_is_masked_in_training_and_missing_in_evaluation(motion_data, tmp_path):
    shutil.copytree(motion_data / "motion_digits", tmp_path / "motion_digits")
    (shard,) = tmp_path.rglob("*train.array_record*")
    content = bytearray(shard.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 100] = b"\xff" * 100
    shard.write_bytes(content)
    dataset = open_dataset("motion_digits", tmp_path, "train")
    damaged = []
    for index in range(len(dataset)):
        try:
            dataset[index]
        except decode.DecodeError as error:
            assert f"record {index} of `train` in {tmp_path / 'motion_digits'}" in str(error)
            assert "\n" not in str(error)
            damaged.append(index)
    assert 0 < len(damaged) < 5

    (batch,) = _collect(dataset, global_batch=40, num_steps=1)
    np.testing.assert_array_equal(batch["mask"], ~np.isin(batch["index"], damaged))
    assert not batch["video"][~batch["mask"]].any()
    (batch,) = pipeline.eval_batches(dataset, CFG, config.Eval(batch=40))
    np.testing.assert_array_equal(batch["index"][batch["missing"]], damaged)


def test_more_shards_than_open_files_are_one_line(motion_data, monkeypatch):
    monkeypatch.setattr(limits, "raise_file_limit", lambda needed: 5)
    with pytest.raises(UserError, match=r"the 1 shards of `train` need \d+ open files, .* limit is 5"):
        open_dataset("motion_digits", motion_data, "train")


def _black(video, indices, total=None):
    return np.full((len(indices), 20, 30, 3), total, np.uint8)


@pytest.mark.parametrize("workers", [0, 1])
def test_another_decoder_can_take_the_place(motion_data, workers):
    dataset = open_dataset("motion_digits", motion_data, "train", decoder=_black)
    (batch,) = _collect(dataset, dataclasses.replace(CFG, workers=workers, flip=False), num_steps=1)
    for index, video in zip(batch["index"], batch["video"], strict=True):
        assert (video == dataset[int(index)].frames).all()


class Slow(Videos):
    """Takes half a second for a process's first video, whose label tells whether another came in between."""

    read = 0

    def __getitem__(self, index):
        Slow.read += 1
        if Slow.read > 1:
            return super().__getitem__(index)._replace(label=2)
        time.sleep(0.5)
        return super().__getitem__(index)._replace(label=int(Slow.read > 1))


def test_the_first_row_of_a_worker_is_loaded_alone():
    """It imports modules; threads that import those of TFDS at the same time may hang."""
    cfg = dataclasses.replace(CFG, workers=1, threads=4)
    (batch,) = _collect(Slow(), cfg, global_batch=8, num_steps=1)
    assert sorted(batch["label"]) == [0] + 7 * [2]


class Larger(Videos):
    """One video whose clips are too large for a leak of them to go unseen."""

    def __init__(self):
        self._videos = [clips.encode(clips.moving_square(12, 128, 160))]

    def __len__(self):
        return 100

    def __getitem__(self, index):
        return Example(f"v{index}", 0, self._videos[0], 12, 25.0, 128, 160)


def test_memory_does_not_grow_with_the_clips_loaded():
    cfg = dataclasses.replace(CFG, resolution=112)
    resident = []
    with pipeline.train_batches(Larger(), cfg, seed=0, global_batch=10, num_steps=80) as batches:
        for step, batch in enumerate(batches, start=1):
            assert batch["mask"].all()
            if step % 40 == 0:
                resident.append(memory.resident_bytes())
    assert resident[1] - resident[0] < 20 * 2**20  # a row is 150 kB, decoded frames 250


def test_close_stops_the_threads(videos):
    before = threading.active_count()
    batches = pipeline.train_batches(videos, CFG, seed=0, global_batch=2, num_steps=50)
    next(batches)
    batches.close()
    for thread in threading.enumerate():
        if thread.name.startswith("grain"):
            thread.join(timeout=10)
    assert threading.active_count() <= before


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("batch", [2, 4, 16])
def test_evaluation_sees_every_video_once_and_counts_the_missing(videos, hosts, batch):
    eval_cfg = config.Eval(clips=2, crops=3, batch=batch)
    by_host = [
        list(pipeline.eval_batches(videos, CFG, eval_cfg, rows=_rows(batch, host, hosts)))
        for host in range(hosts)
    ]
    assert len({len(batches) for batches in by_host}) == 1
    rows = [batch for batches in by_host for batch in batches]
    assert all(row["video"].shape == (batch // hosts, 6, 4, 24, 24, 3) for row in rows)
    joined = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    real = joined["index"] >= 0
    assert sorted(joined["index"][real]) == list(range(7))
    np.testing.assert_array_equal(joined["missing"], joined["index"] == BAD)
    np.testing.assert_array_equal(joined["mask"], real & (joined["index"] != BAD))
    np.testing.assert_array_equal(joined["label"][real], joined["index"][real] % 3)


def test_views_are_clip_by_clip(videos):
    views = pipeline.load_views(videos[0], CFG, config.Eval(clips=3, crops=3))
    full = clips.decode_all(videos[0].video)
    side = full.shape[1]
    for clip, start in enumerate((0, 4, 7)):
        frames = full[start : start + 7 : 2]
        cfg = dataclasses.replace(CFG, resolution=side)
        exact = pipeline.load_views(videos[0], cfg, config.Eval(clips=3, crops=3))
        np.testing.assert_array_equal(exact[3 * clip], frames[:, :, :side])
        np.testing.assert_array_equal(exact[3 * clip + 2], frames[:, :, -side:])
    assert views.shape == (9, 4, 24, 24, 3)


def test_plain_files_are_evaluated_by_the_same_path(videos, tmp_path):
    good, bad = tmp_path / "good.mp4", tmp_path / "bad.mp4"
    good.write_bytes(videos[0].video)
    bad.write_bytes(b"nothing")
    eval_cfg = config.Eval(clips=2, batch=4)
    choose = functools.partial(pipeline.view_indices, cfg=CFG, eval_cfg=eval_cfg)
    files = FileDataset([bad, good, tmp_path / "absent.mp4"], choose)
    (batch,) = pipeline.eval_batches(files, CFG, eval_cfg)
    np.testing.assert_array_equal(batch["missing"], [True, False, True, False])
    np.testing.assert_array_equal(batch["index"], [0, 1, 2, -1])
    (reference, *_) = pipeline.eval_batches(videos, CFG, config.Eval(clips=2, batch=4))
    np.testing.assert_array_equal(batch["video"][1], reference["video"][0])
    assert batch["found"][1] == decode.validate(videos[0].video) and batch["found"][3] is None
    assert "Invalid data" in str(batch["found"][0]) and "cannot be read" in str(batch["found"][2])
