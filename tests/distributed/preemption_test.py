"""Signals to a run: what is saved, what is said, and how soon it ends."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest
from jax._src.lib import _jax

from inti_jax.distributed import coordination, preemption
from inti_jax.distributed.preemption import Preemption
from inti_jax.errors import Stopped
from inti_jax.evaluation import evaluate
from inti_jax.runs import checkpoint, layout
from inti_jax.runs.record import RunRecord
from inti_jax.runs.writers.jsonl import read_metrics
from inti_jax.training import loop
from tests.processes import free_address
from tests.records import computed

pytestmark = pytest.mark.usefixtures("shallow", "unreported")


@pytest.fixture
def foreground():
    """As a shell's foreground starts processes: what scripts start in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_stops_a_run_with_all_its_steps_saved(
    foreground, motion_data, trained_run, tmp_path, monkeypatch
):
    workdir = tmp_path / "run"
    settings = RunRecord.read(trained_run).config

    def signalled(number, whole, *arguments, **options):
        if number not in sent:  # a second one would end this process at once
            sent.append(number)
            heard.clear()
            os.kill(os.getpid(), number)
            assert heard.wait(60)
        return whole(*arguments, **options)

    sent: list[int] = []
    heard, stop = threading.Event(), Preemption._stop
    monkeypatch.setattr(Preemption, "_stop", lambda *arguments: (stop(*arguments), heard.set()))

    # In the save of step 2, which comes after that step's point, so that the next is the last; and while what
    # was done is evaluated.
    for where, name, number, at in (
        (checkpoint.CheckpointManager, "save", signal.SIGINT, 3),
        (evaluate, "predict", signal.SIGTERM, 4),
    ):
        previous = signal.getsignal(number)
        with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
            whole = getattr(where, name)
            patch.setattr(
                where, name, lambda *a, number=number, whole=whole, **o: signalled(number, whole, *a, **o)
            )
            loop.train(settings, workdir)
        assert signal.getsignal(number) == previous
        assert stopped.value.code == 128 + number
        assert stopped.value.message == (
            f"stopped by {signal.Signals(number).name} at step {at}, with its checkpoint saved; "
            "run the same command to resume"
        )
        assert checkpoint.find(workdir) == at == read_metrics(workdir)[-1]["step"]
    loop.train(settings, workdir)
    assert computed(workdir) == computed(trained_run)


def test_before_the_first_step_it_ends_at_once_and_a_second_signal_does(motion_data, tmp_path):
    """Also while the main thread is where no handler of Python's would run: here in a long sleep of C's."""
    script = """
import ctypes, os, signal, sys, threading, time
from inti_jax.distributed.preemption import Preemption
step = int(sys.argv[1])
def ask():
    for _ in range(1 + step):
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
with Preemption() as preemption:
    for _ in range(step):
        assert not preemption.reached()
    threading.Thread(target=ask).start()
    deadline = time.monotonic() + 60
    ctypes.PyDLL(None).usleep(0)  # loaded, so that what follows is C alone
    library = ctypes.CDLL(None)
    while time.monotonic() < deadline:
        library.sleep(60)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(step)], stderr=subprocess.PIPE, text=True)
        for step in (0, 1)
    ]
    said = [process.communicate(timeout=40)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143]
    assert said[0] == "stopped by SIGTERM before the first step; run the same command to start again\n"
    assert said[1] == "stopped at once by a second SIGTERM\n"


def test_a_terminal_that_goes_asks_once_however_often_it_is_said_and_nohup_is_heeded():
    """The kernel sends SIGHUP, the shell again, a session's manager SIGTERM besides; stderr is gone then."""
    script = """
import os, signal, sys, time
from inti_jax.host.command import run_command
from inti_jax.distributed.preemption import Preemption

def main():
    with Preemption() as preemption:
        assert not preemption.reached()
        for number in map(int, sys.argv[1:]):
            os.kill(os.getpid(), number)
            time.sleep(0.8)  # longer than what counts as the same signal
        if preemption.reached():
            raise preemption.stopped(2)
    print("went on")

run_command(main)
"""
    hup, term = str(signal.SIGHUP.value), str(signal.SIGTERM.value)
    cases = {(): [hup, hup, term], ("nohup",): [hup, hup], ("nohup", "env"): [hup, term]}
    with Path("/dev/full").open("w") as gone:
        processes = [
            subprocess.Popen(
                # Not ignored from the start, though this suite may have been started under nohup.
                ["env", "--default-signal=HUP", *before, sys.executable, "-c", script, *numbers],
                stdout=subprocess.PIPE,
                stderr=gone,
                text=True,
            )
            for before, numbers in cases.items()
        ]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [129, 0, 143]
    assert said == ["", "went on\n", ""]


# Two hosts: JAX's own service and clients, in one process.


@pytest.fixture
def hosts(monkeypatch):
    address = free_address()
    service = _jax.get_distributed_runtime_service(address, 2)
    clients = [_jax.get_distributed_runtime_client(address, index, init_timeout=60) for index in (0, 1)]
    together([client.connect for client in clients])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(preemption, "_rounds", itertools.repeat(0))
    made = []
    for index, client in enumerate(clients):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        monkeypatch.setattr(coordination, "client", lambda client=client: client)
        made.append(Preemption())
    yield made
    together([client.shutdown for client in clients])
    service.shutdown()


def together(calls):
    """All at the same time, in threads, where signals are nobody's: what they return."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [found.result() for found in [threads.submit(call) for call in calls]]


def passes(host, points, *, asked_after=None):
    """The point that `host` stops at, or None where it passes all of them."""
    with host:
        for point in range(1, points + 1):
            if host.reached():
                return point
            if point == asked_after:
                host._ask(signal.SIGTERM)
            time.sleep(0.02)
    return None


def test_two_hosts_stop_at_the_same_point_when_one_is_asked(hosts):
    stops = together([lambda: passes(hosts[0], 1000), lambda: passes(hosts[1], 1000, asked_after=3)])
    assert stops[0] == stops[1] > 3


def test_a_host_that_is_done_is_not_waited_for(hosts):
    assert passes(hosts[0], 5) is None
    started = time.monotonic()
    assert passes(hosts[1], 5, asked_after=4) is None
    assert time.monotonic() - started < preemption._AGREE / 4


# What an earlier start may have left.


def test_a_start_that_came_to_nothing_is_started_anew(motion_data, trained_run, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(trained_run / name, workdir)
    layout.checkpoint_dir(workdir).mkdir()
    (layout.checkpoint_dir(workdir) / "2.partial").mkdir()
    (workdir / "lock").write_text("process 1 on another\n")  # of a process that was killed
    lines = (workdir / "metrics.jsonl").read_text()
    (workdir / "metrics.jsonl").write_text(lines[: len(lines) // 2])
    (workdir / "config.partial").write_text('{"model"')
    loop.train(RunRecord.read(trained_run).config, workdir)
    assert computed(workdir) == computed(trained_run)
