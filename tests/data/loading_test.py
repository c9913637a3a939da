import contextlib
import dataclasses
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inti_jax.data import decode, loading, pipeline, shared
from inti_jax.data.shared import Memory, Sent, Slots
from tests.data.pipeline_test import CFG, Decoded, Videos

WORKERS = dataclasses.replace(CFG, workers=2, threads=1)


def _fill(slots, ks):
    for k in ks:
        with slots.filling(k) as array:
            array[...] = k


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_a_slot_is_never_overwritten_before_it_is_released(data):
    count = data.draw(st.integers(1, 6))
    workers = data.draw(st.integers(1, 4))
    length = data.draw(st.integers(1, 30))
    slots = Slots(count, (3, 2))
    copies = [pickle.loads(pickle.dumps(slots)) for _ in range(workers)]
    filled = [threading.Event() for _ in range(length)]

    def fill(worker):
        for k in range(worker, length, workers):
            _fill(copies[worker], [k])
            filled[k].set()

    threads = [threading.Thread(target=fill, args=(worker,)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    try:
        for k in range(length):
            assert filled[k].wait(10)
            assert (slots[k] == k).all()
            assert not any(event.is_set() for event in filled[k + count :])
            slots.release(k + 1)
    finally:
        slots.stop()
        for thread in threads:
            thread.join()
    assert not slots.fillers()
    slots.close()


def test_other_processes_fill_them_and_run_what_was_sent():
    slots, double = Slots(4, (1000, 1000)), Sent(_double)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_fill_by, args=(slots, double))
    process.start()
    process.join(30)
    assert [slots[k].max() for k in range(4)] == [0, 2, 4, 6]
    assert slots.fillers() == {}
    assert len(pickle.dumps((slots, double))) < 1000
    slots.close()
    double.close()
    assert not any(slots[k].any() for k in range(4))  # its memory is given back


def _double(k):
    return 2 * k


def _fill_by(slots, function):
    for k in range(4):
        with slots.filling(k) as array:
            array[...] = function(k)


def test_who_waits_for_a_slot_does_not_when_no_more_are_wanted():
    slots = Slots(2, (1,))

    def wait():
        with slots.filling(2) as array:
            return array

    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(wait)
        with pytest.raises(TimeoutError):
            waiting.result(0.1)
        slots.stop()
        assert waiting.result(10) is None
    assert not slots.fillers()
    slots.close()


def _open_memory():
    count = 0
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself is gone again
            count += path.readlink().name.startswith("memfd:inti_jax")
    return count


def test_closing_leaves_no_memory_and_no_process():
    gc.collect()
    before = _open_memory()
    for _ in range(2):
        with pipeline.train_batches(Videos(), WORKERS, seed=0, global_batch=2, num_steps=50) as batches:
            next(batches)
            assert _open_memory() >= before + 2
        assert not multiprocessing.active_children()
    gc.collect()  # what Grain keeps
    assert _open_memory() <= before


def test_what_is_dropped_without_closing_is_gone():
    gc.collect()
    before = _open_memory()
    batches = pipeline.train_batches(Videos(), WORKERS, seed=0, global_batch=2, num_steps=10_000)
    next(batches)
    del batches
    deadline = time.monotonic() + 20
    while _open_memory() > before or multiprocessing.active_children():
        assert time.monotonic() < deadline
        gc.collect()
        time.sleep(0.1)


def test_what_was_closed_is_not_opened_as_another():
    closed = Memory(8)
    closed.close()
    other = Memory(8)
    assert other.place[0] == closed.place[0]  # the number is given anew
    with pytest.raises(FileNotFoundError):
        shared._opened(closed.place)
    assert len(shared._opened(other.place)) == 8
    other.close()


def _endless(video, indices, total=None):
    if total == 16:  # that of index 2
        time.sleep(600)
    return decode.decode_frames(video, indices, total)


def test_a_worker_that_comes_to_no_end_ends_the_run_with_the_reason(monkeypatch):
    monkeypatch.setattr(loading, "_ROW_SECONDS", 3)
    with (
        pipeline.train_batches(Decoded(_endless), WORKERS, seed=5, global_batch=7, num_steps=5) as batches,
        pytest.raises(loading.LoadingError, match=r"video of index 2 did not come to an end in 3 s"),
    ):
        list(batches)
    assert not multiprocessing.active_children()


def test_closing_does_not_wait_for_a_worker_that_comes_to_no_end(monkeypatch):
    monkeypatch.setattr(loading, "_LAST_ROW_SECONDS", 1)
    with pipeline.train_batches(Decoded(_endless), WORKERS, seed=5, global_batch=1, num_steps=50) as batches:
        assert next(batches)["index"] != 2
        time.sleep(1)
        started = time.monotonic()
    assert time.monotonic() - started < 10
    assert not multiprocessing.active_children()


def test_batches_of_one_are_copies_too():
    batches = {}
    for workers in (0, 2):
        cfg = dataclasses.replace(WORKERS, workers=workers)
        with pipeline.train_batches(Videos(), cfg, seed=5, global_batch=1, num_steps=60) as loaded:
            batches[workers] = list(loaded)
    for one, other in zip(*batches.values(), strict=True):
        np.testing.assert_array_equal(one["video"], other["video"])


class _OwnError(Exception):
    """Does not unpickle."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def _type_error(video, indices, total=None):
    raise TypeError("no such codec")


def _stop_iteration(video, indices, total=None):
    return next(iter(()))


def _own_error(video, indices, total=None):
    raise _OwnError(1, 2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("decoder", "kind", "message"),
    [
        (_type_error, TypeError, "no such codec"),
        (_stop_iteration, RuntimeError, "loading a row: StopIteration"),
        (_own_error, RuntimeError, "loading a row: _OwnError: 1 and 2"),
    ],
)
def test_an_error_of_a_decoder_ends_the_run_with_it(workers, decoder, kind, message):
    cfg = dataclasses.replace(WORKERS, workers=workers)
    with (
        pipeline.train_batches(Decoded(decoder), cfg, seed=5, global_batch=2, num_steps=9) as batches,
        pytest.raises(kind, match=message),
    ):
        list(batches)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("video", [np.zeros((1, 8, 8, 3), np.uint8), np.zeros((4, 8, 8, 3), np.float32)])
def test_a_row_of_another_shape_or_type_is_refused(video):
    with pytest.raises(ValueError, match=rf"is {video.dtype} \({len(video)}, .*: uint8 \(4, 8, 8, 3\) is"):
        loading._checked(lambda element: {"video": video}, (4, 8, 8, 3), 0)


_UNCLOSED = """
from inti_jax.data import pipeline
from tests.data.loading_test import WORKERS, Videos

if __name__ == "__main__":
    batches = pipeline.train_batches(Videos(), WORKERS, seed=0, global_batch=2, num_steps=10_000)
    next(batches)
"""


def test_a_program_that_does_not_close_ends_soon_and_says_nothing(tmp_path):
    script = tmp_path / "unclosed.py"
    script.write_text(_UNCLOSED)
    command, environment = [sys.executable, script], os.environ | {"PYTHONPATH": "."}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=True)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_leave_it_to_the_run_to_stop(number):
    with pipeline.train_batches(Videos(), WORKERS, seed=5, global_batch=2, num_steps=200) as batches:
        next(batches)
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker.pid, number)
        for _ in range(30):
            next(batches)
        assert [worker.is_alive() for worker in workers] == [True, True]


def _die(content):
    os._exit(3)


class DiesAtTheStart(Videos):
    """More than a pipe holds."""

    def __reduce__(self):
        return _die, (bytes(200_000),)


def test_workers_that_die_as_they_start_end_the_run_with_the_reason():
    with (
        pipeline.train_batches(DiesAtTheStart(), WORKERS, seed=5, global_batch=7, num_steps=5) as batches,
        pytest.raises(loading.LoadingError, match=r"died 3 times in a row before batch 0.*exited \(3\)"),
    ):
        next(batches)
