"""One pool of worker processes for all that a run loads: its batches, deaths, closing, and open files."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from inti_jax import config
from inti_jax.data import pipeline
from inti_jax.data.codec import decode
from inti_jax.data.loading import processes, workers
from inti_jax.data.loading.device import DevicePrefetch
from inti_jax.data.loading.workers import LoadingError, Workers
from inti_jax.errors import UserError
from inti_jax.host import limits
from inti_jax.training import loop
from tests.configs import tiny
from tests.data.videos import CFG, Decoded, Videos

TWO = dataclasses.replace(CFG, workers=2, threads=1, prefetch=1)
EVAL = config.Eval(clips=2, crops=1, batch=2)
TRAIN = {"seed": 5, "global_batch": 4, "num_steps": 12}


@pytest.fixture
def pool():
    made = Workers(2, 1)
    yield made
    made.close()
    assert not multiprocessing.active_children()


def _same(batches, expected):
    for batch, reference in zip(batches, expected, strict=True):
        for key in reference:
            np.testing.assert_array_equal(batch[key], reference[key])


def _place(batch):
    return jax.device_put(dict(batch))


def test_an_evaluation_takes_the_trainings_workers_and_leaves_its_batches_as_they_are(pool):
    """Also where a worker dies during an evaluation, and where one ends before its last batch."""
    videos = Videos()
    threads = dataclasses.replace(TWO, workers=0)
    with pipeline.train_batches(videos, threads, **TRAIN) as batches:
        expected = list(batches)
    evaluated = list(pipeline.eval_batches(videos, threads, EVAL))

    loaded = pipeline.train_batches(videos, TWO, **TRAIN, workers=pool)
    training = DevicePrefetch(loaded, _place, ahead=2)
    seen = [next(training) for _ in range(3)]
    children = multiprocessing.active_children()
    assert all(child.name.startswith(processes._PROCESS_NAME) for child in children)
    assert len(children) == 2
    _same(pipeline.eval_batches(videos, TWO, EVAL, workers=pool), evaluated)
    assert multiprocessing.active_children() == children
    seen += [next(training) for _ in range(2)]

    batches = pipeline.eval_batches(videos, TWO, EVAL, workers=pool)
    found = [next(batches)]
    os.kill(children[0].pid, signal.SIGKILL)
    found += list(batches)
    _same(found, evaluated)
    assert len(multiprocessing.active_children()) == 2
    seen += [next(training) for _ in range(2)]

    with pipeline.eval_batches(videos, TWO, EVAL, workers=pool) as batches:
        next(batches)
        job = batches._loading
    seen += list(training)
    _same(seen, expected)
    assert job.pending == 0 and job not in pool._jobs  # its memory is given back
    assert len(multiprocessing.active_children()) == 2  # until the pool is closed
    training.close()


def _broken(video, indices, total=None):
    if total == 17:  # that of index 3
        raise TypeError("no such codec")
    return decode.decode_frames(video, indices, total)


def test_what_loading_raises_comes_to_whom_it_concerns():
    pool = Workers(1, 1)
    training = pipeline.train_batches(Videos(), TWO, **TRAIN, workers=pool)
    next(training)
    broken = pipeline.eval_batches(Decoded(_broken), TWO, EVAL, workers=pool)
    with pytest.raises(TypeError, match="no such codec") as caught:
        list(broken)
    assert "in _broken" in "".join(caught.value.__notes__)  # where in the worker
    with pytest.raises(TypeError, match="no such codec"):
        next(broken)
    broken.close()
    assert len(list(training)) == 11
    pool.close()


def _endless(video, indices, total=None):
    if total == 16:  # that of index 2
        time.sleep(600)
    return decode.decode_frames(video, indices, total)


@pytest.mark.parametrize("count", [0, 1])
def test_batches_can_be_closed_while_another_thread_waits_for_one(count, monkeypatch):
    monkeypatch.setattr(processes, "_LAST_ROW_SECONDS", 1)
    slow = _endless if count else decode.decode_frames
    cfg = dataclasses.replace(TWO, workers=count)
    batches = pipeline.train_batches(Decoded(slow), cfg, seed=5, global_batch=7, num_steps=10_000)
    raised = []

    def iterate():
        try:
            for _ in batches:
                pass
        except LoadingError as error:
            raised.append(str(error))

    thread = threading.Thread(target=iterate)
    thread.start()
    time.sleep(1)
    closing = threading.Thread(target=batches.close)  # a third
    closing.start()
    closing.join(30)
    thread.join(30)
    assert not thread.is_alive() and not closing.is_alive()
    assert len(raised) == 1 and "closed" in raised[0]
    with pytest.raises(LoadingError, match="closed"):
        next(batches)
    batches.close()
    assert not multiprocessing.active_children()


def test_what_is_ahead_on_the_devices_is_closed_with_what_it_is_made_of():
    batches = pipeline.train_batches(Videos(), dataclasses.replace(TWO, workers=0), **TRAIN)
    training = DevicePrefetch(batches, _place, ahead=2)
    next(training)
    training.close()
    with pytest.raises(LoadingError, match="closed"):
        next(batches)


@pytest.mark.parametrize(
    ("exit_code", "reason"),
    [
        (-signal.SIGKILL, "memory probably ran out: lower `data.workers`"),
        (-signal.SIGSEGV, "a video probably crashes the decoder: one of the indices 4, 7, or one soon after"),
        (1, "its traceback is above"),
    ],
)
def test_the_reason_depends_on_how_workers_died(exit_code, reason):
    assert workers._why(exit_code, [4, 7]).startswith(reason)


# --------------------------------------------------------------------------------------------------
# Open files.

_COUNT = """
import sys
from inti_jax.host import limits
from inti_jax.data import pipeline
from inti_jax.data.loading import processes
from inti_jax.data.loading.workers import Workers
from tests.data.loading.workers_test import EVAL, TRAIN, TWO, Videos

if __name__ == "__main__":
    count, before = int(sys.argv[1]), limits.open_files()
    pool = Workers(count, 1)
    train = pipeline.train_batches(Videos(), TWO, **TRAIN, workers=pool)
    evaluation = pipeline.eval_batches(Videos(), TWO, EVAL, workers=pool)
    next(train), next(evaluation)
    print(limits.open_files() - before, processes.files_needed(count))
    pool.close()
"""


def _script(text, tmp_path, *arguments):
    script = tmp_path / "script.py"
    script.write_text(text)
    command, environment = [sys.executable, script, *arguments], os.environ | {"PYTHONPATH": "."}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("count", [1, 2])
def test_the_count_of_open_files_is_the_one_that_workers_take(count, tmp_path):
    done = _script(_COUNT, tmp_path, str(count))
    taken, computed = map(int, done.stdout.split())
    assert taken == computed, done.stderr


def test_workers_are_as_many_as_open_files_allow(monkeypatch, caplog):
    monkeypatch.setattr(processes.log, "propagate", True)
    assert processes.files_needed(200) == 2 + 2 + 3 + 200 * 8 + 2 * 4
    monkeypatch.setattr(limits, "open_files", lambda: 21)
    raised = []
    monkeypatch.setattr(limits, "raise_file_limit", lambda needed: raised.append(needed) or 4096)
    assert processes.affordable(200, exactly=True) == 200
    assert raised == [21 + limits.SPARE_FILES + 1615] and not caplog.messages

    monkeypatch.setattr(limits, "raise_file_limit", lambda needed: 1024)
    fit = processes.affordable(200, exactly=False)
    assert 21 + limits.SPARE_FILES + processes.files_needed(fit) <= 1024
    assert 21 + limits.SPARE_FILES + processes.files_needed(fit + 1) > 1024
    (message,) = caplog.messages
    assert message.endswith(f"need 1764 open files, and the hard limit is 1024: starting {fit}")
    with pytest.raises(UserError, match=rf"the hard limit is 1024: raise it .*`data.workers={fit}`$"):
        processes.affordable(200, exactly=True)
    monkeypatch.setattr(limits, "raise_file_limit", lambda needed: 64)
    assert processes.affordable(200, exactly=False) == 0
    assert "loading with threads instead" in caplog.messages[-1]


def test_a_run_with_too_many_workers_is_refused_before_it_leaves_anything(motion_data, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "raise_file_limit", lambda needed: 64)
    with pytest.raises(UserError, match=r"`data.workers=0`, which loads with threads"):
        loop.train(tiny(motion_data, data__workers=8), tmp_path / "run")
    assert {path.name for path in tmp_path.glob("run/*")} <= {"lock"}


_SHORT = """
import resource, sys
from inti_jax.host import limits
from inti_jax.data import pipeline
from inti_jax.data.loading import batches as loading
from inti_jax.host.command import run_command
from tests.data.loading.workers_test import TRAIN, TWO, Videos

def main():
    loading.affordable = lambda count, exactly: 4  # a count that is wrong
    batches = pipeline.train_batches(Videos(), TWO, **TRAIN)
    limit = limits.open_files() + int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    try:
        list(batches)
    finally:
        batches.close()

if __name__ == "__main__":
    run_command(main)
"""


@pytest.mark.parametrize("files", [5, 22, 32])
def test_a_run_that_is_out_of_open_files_all_the_same_ends_with_the_reason(files, tmp_path):
    done = _script(_SHORT, tmp_path, str(files))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: Too many open files: 4 worker processes do not fit"), done.stderr
    assert "Traceback" not in done.stderr
