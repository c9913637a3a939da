import contextlib
import dataclasses
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from inti_jax.data import pipeline
from inti_jax.data.codec import decode
from inti_jax.data.loading import processes, rows
from inti_jax.data.loading.workers import LoadingError, Workers
from tests.data.videos import CFG, Decoded, Videos

# Each worker imports JAX, by way of Grain: seconds. So most tests start one.
ONE = dataclasses.replace(CFG, workers=1, threads=1)


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
        with pipeline.train_batches(Videos(), ONE, seed=0, global_batch=2, num_steps=50) as batches:
            next(batches)
            assert _open_memory() >= before + 2
        assert not multiprocessing.active_children()
    gc.collect()  # what Grain keeps
    assert _open_memory() <= before


def test_what_is_dropped_without_closing_is_gone():
    gc.collect()
    before = _open_memory()
    batches = pipeline.train_batches(Videos(), ONE, seed=0, global_batch=2, num_steps=10_000)
    next(batches)
    del batches
    deadline = time.monotonic() + 20
    while _open_memory() > before or multiprocessing.active_children():
        assert time.monotonic() < deadline
        gc.collect()
        time.sleep(0.1)


def _endless(video, indices, total=None):
    if total == 16:  # that of index 2
        time.sleep(600)
    return decode.decode_frames(video, indices, total)


def test_a_worker_that_comes_to_no_end_ends_the_run_with_the_reason(monkeypatch, capfd):
    monkeypatch.setattr(processes, "ROW_SECONDS", 3)
    with (
        pipeline.train_batches(Decoded(_endless), ONE, seed=5, global_batch=7, num_steps=5) as batches,
        pytest.raises(LoadingError, match=r"video of index 2 did not finish in 3 s"),
    ):
        list(batches)
    assert not multiprocessing.active_children()
    assert "in _endless" in capfd.readouterr().err  # the stack


def test_closing_does_not_wait_for_a_worker_that_comes_to_no_end(monkeypatch):
    monkeypatch.setattr(processes, "_LAST_ROW_SECONDS", 1)
    with pipeline.train_batches(Decoded(_endless), ONE, seed=5, global_batch=1, num_steps=50) as batches:
        assert next(batches)["index"] != 2
        time.sleep(1)
        started = time.monotonic()
    assert time.monotonic() - started < 10
    assert not multiprocessing.active_children()


def test_batches_of_one_are_copies_too():
    batches = {}
    for count in (0, 1):
        cfg = dataclasses.replace(ONE, workers=count)
        with pipeline.train_batches(Videos(), cfg, seed=5, global_batch=1, num_steps=60) as loaded:
            batches[count] = list(loaded)
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


@pytest.mark.parametrize("count", [0, 1])
def test_an_error_of_a_decoder_ends_the_run_with_it(count):
    cfg = dataclasses.replace(ONE, workers=count)
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(contextlib.closing(Workers(count, 1))) if count else None
        for decoder, kind, message in (
            (_type_error, TypeError, "no such codec"),
            (_stop_iteration, RuntimeError, "loading a row: StopIteration"),
            (_own_error, RuntimeError, "loading a row: _OwnError: 1 and 2"),
        ):
            options = {"seed": 5, "global_batch": 2, "num_steps": 9, "workers": workers}
            with (
                pipeline.train_batches(Decoded(decoder), cfg, **options) as batches,
                pytest.raises(kind, match=message),
            ):
                list(batches)
    # Also where the workers are the batches' own.
    with (
        pipeline.train_batches(Decoded(_type_error), cfg, seed=5, global_batch=2, num_steps=9) as batches,
        pytest.raises(TypeError, match="no such codec"),
    ):
        list(batches)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("video", [np.zeros((1, 8, 8, 3), np.uint8), np.zeros((4, 8, 8, 3), np.float32)])
def test_a_row_of_another_shape_or_type_is_refused(video):
    with pytest.raises(ValueError, match=rf"is {video.dtype} \({len(video)}, .*, not uint8 \(4, 8, 8, 3\)"):
        rows.checked(lambda element: {"video": video}, (4, 8, 8, 3))(0)


_UNCLOSED = """
from inti_jax.data import pipeline
from tests.data.loading.batches_test import ONE, Videos

if __name__ == "__main__":
    batches = pipeline.train_batches(Videos(), ONE, seed=0, global_batch=2, num_steps=10_000)
    next(batches)
"""


def test_a_program_that_does_not_close_ends_soon_and_says_nothing(tmp_path):
    script = tmp_path / "unclosed.py"
    script.write_text(_UNCLOSED)
    command, environment = [sys.executable, script], os.environ | {"PYTHONPATH": "."}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "Traceback" not in done.stderr


def test_workers_leave_it_to_the_run_to_stop():
    two = dataclasses.replace(ONE, workers=2)
    with pipeline.train_batches(Videos(), two, seed=5, global_batch=2, num_steps=200) as batches:
        next(batches)
        workers = multiprocessing.active_children()
        for worker, number in zip(workers, (signal.SIGINT, signal.SIGTERM), strict=True):
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
        pipeline.train_batches(DiesAtTheStart(), ONE, seed=5, global_batch=7, num_steps=5) as batches,
        pytest.raises(LoadingError, match=r"died 3 times in a row before batch 0.*exited \(3\)"),
    ):
        next(batches)
