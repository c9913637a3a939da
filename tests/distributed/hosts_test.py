"""Two processes on this machine: what they compute together, and how they end when one of them is lost."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax import nnx

from inti_jax import config
from inti_jax.config import Mesh
from inti_jax.config.backbones import BACKBONES
from inti_jax.data.dataset import open_dataset
from inti_jax.distributed import sharding
from inti_jax.distributed.liveness import Judge, Place
from inti_jax.evaluation import evaluate
from inti_jax.runs import checkpoint, predictions, state
from inti_jax.runs.evaluations import Setting
from inti_jax.runs.record import RunRecord
from inti_jax.runs.trained import load
from inti_jax.runs.writers.jsonl import read_metrics
from tests.distributed import hosts
from tests.processes import environment, free_address, start_main

# The others: `python -m tests.distributed.hosts --all`; compiling takes long.
METHOD, MESH = COMBINATION = ["zero_i2v", "data=2 fsdp=2 tensor=2"]
STEPS = 10  # two epochs
PAIR, SINGLE = (2, 4), (1, 1)
ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("hosts")
    hosts.prepare(out)
    for layout in (PAIR, SINGLE):
        for process in hosts.start(out, [COMBINATION], layout, STEPS):
            _, errors = process.communicate(timeout=400)
            assert process.returncode == 0, errors
    return out


def directories(out):
    return [hosts.run_directory(out, METHOD, MESH, layout) for layout in (PAIR, SINGLE)]


def test_two_processes_compute_what_one_device_does(trained):
    pair, single = directories(trained)
    expected = hosts.losses(single)
    assert len(expected) == STEPS and expected[-1] != expected[0]
    assert hosts.losses(pair) == pytest.approx(expected, abs=1e-5)

    records = [[r for r in read_metrics(path) if r["split"] == "val"] for path in (pair, single)]
    for record in (*records[0], *records[1]):
        assert record.pop("seconds") > 0
    assert records[0] == records[1]
    assert [(r["step"], r["weights"]) for r in records[0]] == [
        (step, weights) for step in (STEPS // 2, STEPS) for weights in ("raw", "ema")
    ]
    assert records[0][0]["evaluated"] == 20 and records[0][0]["missing"] == 0

    blends = [[r for r in read_metrics(path) if r["split"] == "blends"] for path in (pair, single)]
    assert len(blends[0]) == STEPS and blends[0][-1]["std_1"] > 0
    for ours, theirs in zip(*blends, strict=True):
        assert ours == pytest.approx(theirs | {"far": ours["far"]}, abs=1e-4)
        assert ours["far"] == pytest.approx(theirs["far"], abs=0.01)

    parts = [json.loads((pair / f"seen-{index}.json").read_text()) for index in (0, 1)]
    assert sorted(map(tuple, parts[0] + parts[1])) == [(e, i) for e in (0, 1) for i in range(40)]


def test_two_processes_keep_the_predictions_that_one_does(trained, tmp_path, monkeypatch):
    """To the last bit, where one process has the same devices."""
    monkeypatch.setitem(BACKBONES, "tiny", hosts.SHALLOW)
    pair, _ = directories(trained)
    kept = {path.name: path.read_bytes() for path in predictions.find(pair).values()}
    assert [(place.step, place.weights) for place in predictions.find(pair)] == [
        (step, weights) for step in (STEPS // 2, STEPS) for weights in ("ema", "raw")
    ]
    run = RunRecord.read(pair)
    mesh = sharding.make_mesh(run.config.mesh)
    dataset = open_dataset(run.config.data.name, run.config.data.data_dir, "val")
    forward = evaluate.make_forward(nnx.graphdef(state.abstract_model(run)), mesh)
    params = load(pair, mesh).params
    _, found = evaluate.evaluate(forward, params, dataset, run.config.data, run.config.eval, mesh)
    evaluate.keep(tmp_path, STEPS, found, dataset, run.config, Setting.of_run(run))
    (path,) = predictions.find(tmp_path).values()
    assert path.name.startswith(f"{STEPS}-1x1-ema-") and path.read_bytes() == kept[path.name]


def test_what_a_run_starts_from_is_not_compared_over_the_network(trained):
    pair, single = directories(trained)
    for directory in (pair, single):
        assert json.loads((directory / "config.json").read_text())["model"]["start_from"]
    assert [(pair / f"compared-{index}.json").read_text() for index in (0, 1)] == ["0", "0"]


@pytest.mark.parametrize(
    ("devices", "sizes"), [(2, Mesh()), (8, Mesh()), (8, Mesh(fsdp=8)), (4, Mesh(fsdp=2, tensor=2))], ids=str
)
def test_what_two_processes_saved_is_restored_on_one(trained, devices, sizes, monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", hosts.SHALLOW)
    pair, single = directories(trained)
    on_one = load(pair, sharding.make_mesh(Mesh(), jax.devices()[:1])).params
    found = load(pair, sharding.make_mesh(sizes, jax.devices()[:devices])).params
    same_run = load(single, sharding.make_mesh(Mesh(), jax.devices()[:1])).params
    raw = load(pair, sharding.make_mesh(Mesh(), jax.devices()[:1]), weights="raw").params
    assert not np.array_equal(raw["head.kernel"], on_one["head.kernel"])  # which is averaged
    assert found.keys() == on_one.keys() == same_run.keys()
    for path, value in found.items():
        np.testing.assert_array_equal(value, on_one[path], err_msg=path)
        np.testing.assert_allclose(value, same_run[path], rtol=0, atol=1e-4, err_msg=path)


# The main job, with one of two processes in trouble.


# The default, no less: while a process imports, its other threads may wait for seconds, and for 16 where six
# processes and other tests shared two cores.
SILENT = config.Hosts().silent_seconds


class Pair:
    """Two processes of the main job; `extra` are further arguments of each."""

    def __init__(self, directory, data, extra=((), ())):
        arguments = [
            "--config", "configs/quickstart.py:compression=none",
            "--workdir", str(directory / "run"), f"--config.data.data_dir={data}",
            "--config.train.steps=4000", "--config.train.epochs=0.0", "--config.train.global_batch=2",
            "--config.train.log_every_steps=1", "--config.eval.batch=2", "--config.data.num_frames=2",
            "--config.model.scan=on",  # compiles sooner
        ]  # fmt: skip
        self.logs = [directory / f"{index}.log" for index in (0, 1)]
        self.processes = start_main(self.logs, [[*arguments, *map(str, own)] for own in extra])

    def await_step(self, step):
        deadline = time.monotonic() + 300
        while f"train {step}/" not in self.logs[0].read_text():
            assert time.monotonic() < deadline, self.said()
            assert all(process.poll() is None for process in self.processes), self.said()
            time.sleep(0.05)

    def end(self, index, seconds):
        """The exit status of process `index` and its last line."""
        status = self.processes[index].wait(seconds)
        return status, self.logs[index].read_text().strip().splitlines()[-1]

    def said(self):
        return "\n".join(path.read_text()[-2000:] for path in self.logs)

    def kill(self):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


@pytest.fixture
def pairs():
    started = []
    yield lambda *arguments: started.append(Pair(*arguments)) or started[-1]
    for pair in started:
        pair.kill()


FAULTS = [(1, signal.SIGSTOP), (0, signal.SIGKILL)]


def test_the_process_that_is_lost_is_named_and_the_other_ends(motion_data, tmp_path, pairs):
    running = []
    for number in range(len(FAULTS)):  # all at once, since most of it is waiting
        (tmp_path / str(number)).mkdir()
        running.append(pairs(tmp_path / str(number), motion_data))
    for pair, (victim, number) in zip(running, FAULTS, strict=True):
        pair.await_step(2)
        pair.processes[victim].send_signal(number)
    for pair, (victim, _) in zip(running, FAULTS, strict=True):
        status, line = pair.end(1 - victim, SILENT + 40)
        assert status == 1, pair.said()
        where = f"error: process {victim} on {socket.gethostname()} has been silent since "
        assert line.startswith(where) and "at `step " in line, pair.said()
        assert "Traceback" not in pair.logs[1 - victim].read_text()
        assert "Check failure" not in pair.logs[1 - victim].read_text()


def test_processes_that_are_not_alike_or_fail_alone_do_not_start(motion_data, tmp_path, pairs):
    cases = {
        "process 1 on {} differs from process 0 on {}: `train.seed` is 3 there, 0 here": [
            "--config.train.seed=3"
        ],
        "process 1 on {} does not see what process 0 on {} writes to": ["--workdir", tmp_path / "elsewhere"],
        "process 1 on {} failed: ": ["--config.data.data_dir=nowhere"],
    }
    running = []
    for number, extra in enumerate(cases.values()):
        (tmp_path / str(number)).mkdir()
        running.append(pairs(tmp_path / str(number), motion_data, ((), extra)))
    for pair, expected in zip(running, cases, strict=True):
        text = expected.format(*[socket.gethostname()] * 2)
        for index in (0, 1):
            status, line = pair.end(index, 90)
            assert status == 1, pair.said()
            if text.endswith("failed: ") and index == 1:
                text = "inti_jax.prepare motion_digits"  # its own error, in its own words
            assert text in line, pair.said()
            assert "Traceback" not in pair.logs[index].read_text()


def save_together(workdir, *arguments):
    """Return what both processes of `tests.runs.save_together` say until they end with status 1."""
    address = free_address()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.runs.save_together", address, str(index), workdir, *arguments],
            env=environment(1), stderr=subprocess.PIPE,
        )
        for index in (0, 1)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=100)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [1, 1], said
    return said


def test_a_save_that_fails_in_different_parts_ends_at_once(tmp_path):
    for text in save_together(tmp_path, "apart"):
        assert b"/checkpoints/2 cannot be written (No space left on device)" in text.splitlines()[-1], text
    assert checkpoint.find(tmp_path) == 1


def test_a_save_that_fails_is_told_while_the_others_wait_for_it(tmp_path):
    """Below a name that Orbax would not take, which both have to call alike: see `paths.plain`."""
    workdir = tmp_path / os.fsdecode(b"run[1]\xff")
    said = save_together(workdir)
    reason = os.fsencode(
        f"process 1 on {socket.gethostname()} failed: {workdir}/checkpoints/2 cannot be written"
    )
    for text in said:
        assert reason + b" (File too large)" in text.splitlines()[-1] and b"Traceback" not in text, text
    assert checkpoint.find(workdir) == 1
    leaf = jax.ShapeDtypeStruct((2**19,), np.float32, sharding=ONE)
    found = checkpoint.restore_params(workdir, 1, {"head.bias": leaf})["head.bias"]
    np.testing.assert_array_equal(found, jax.random.normal(jax.random.key(0), (2**19,)))


def test_a_process_that_is_done_ends_before_python_finalizes():
    """Then a thread of C++ that asks for the interpreter's lock would abort it.

    Process 0 is gone for seconds before the other, on a busy machine, knows that all are done.
    """
    script = """
import atexit, sys, time
from inti_jax import config
from inti_jax.distributed import agreement, joining, liveness
from inti_jax.errors import Stopped
from inti_jax.host.command import run_command

class Last:
    def __del__(self):
        print("finalized")

last = Last()

def late(watch, stop=liveness.Watch.stop):
    time.sleep(2.5)
    stop(watch)

if sys.argv[2] == "1":
    liveness.Watch.stop = late

def main():
    with joining.joined(sys.argv[1], 2, int(sys.argv[2]), config.Hosts()):
        atexit.register(print, "exit handlers")
        agreement.gather(0)  # so that neither is gone before the other is there
        if len(sys.argv) > 3:
            raise Stopped("stopped", int(sys.argv[3]))

run_command(main)
"""
    for signal_number, status in (([], 0), (["15"], 143)):
        address = free_address()
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", script, address, str(index), *signal_number],
                env=environment(1), stdout=subprocess.PIPE, text=True,
            )
            for index in (0, 1)
        ]  # fmt: skip
        said = [process.communicate(timeout=100)[0].strip() for process in processes]
        assert [process.returncode for process in processes] == [status, status]
        assert said == ["exit handlers", "exit handlers"]


# Whom the others wait for.

LIMITS = config.Hosts(silent_seconds=10.0, stall_seconds=60.0, slow_seconds=600.0)


class Three:
    def __init__(self):
        self.judge, self.now = Judge(range(3), LIMITS, 0.0), 0.0
        self.places = {index: Place(f"host-{index}") for index in range(3)}

    def move(self, *indices, doing="step 1: its batch", slow=False, **changes):
        for index in indices:
            place = self.places[index]
            self.places[index] = dataclasses.replace(
                place, doing=doing, slow=slow, count=place.count + 1, **changes
            )

    def wait(self, seconds, *, without=()):
        for _ in range(seconds):
            self.now += 1
            for index in set(self.places) - set(without):
                self.places[index] = dataclasses.replace(self.places[index], beat=self.places[index].beat + 1)
            self.judge.see(self.now, self.places)


def test_who_stands_still_while_the_others_wait_is_named():
    three = Three()
    three.move(0, 1, 2)
    three.move(0, 1, doing="step 1: computing")
    three.wait(50)
    assert three.judge.standing(three.now) is None
    assert "process 2 on host-2: it stands at `step 1: its batch`" in three.judge.waited_for(three.now)
    three.wait(20)
    assert "process 2 on host-2: it stands at `step 1: its batch`" in three.judge.standing(three.now)
    three.move(2, doing="step 1: computing")
    three.wait(1)
    assert three.judge.standing(three.now) is three.judge.waited_for(three.now) is None


def test_what_takes_long_may_and_what_all_do_names_nobody():
    three = Three()
    three.move(0, 1, 2, doing="step 1: computing", slow=True)
    three.move(0, doing="step 2: its batch")
    three.wait(500)
    assert three.judge.standing(three.now) is None
    three.wait(200)
    assert "process 1 on host-1 (and 1 more)" in three.judge.standing(three.now)
    three.move(1, 2, doing="step 2: its batch")
    three.wait(500)
    assert three.judge.standing(three.now) is None
    three.wait(200)
    assert three.judge.standing(three.now).startswith("all processes stand at `step 2: its batch`")


def test_once_all_are_done_nobody_is_waited_for():
    three = Three()
    three.move(0, 1, 2, left=True)
    three.wait(700)
    assert three.judge.waited_for(three.now) is three.judge.standing(three.now) is None


def test_who_is_silent_or_failed_is_named_and_who_is_done_is_not():
    three = Three()
    three.wait(5, without=[1])
    assert three.judge.silent(three.now) is None
    three.wait(6, without=[1])
    assert three.judge.silent(three.now).startswith("process 1 on ")
    three.wait(1)
    assert three.judge.silent(three.now) is None
    three.places[2] = dataclasses.replace(three.places[2], left=True)
    three.wait(300)
    assert three.judge.standing(three.now) is three.judge.failed() is None
    three.places[1] = dataclasses.replace(three.places[1], failed="the disk is full")
    three.wait(1)
    assert three.judge.failed() == "process 1 on host-1 failed: the disk is full"
    assert Judge(range(1), LIMITS, 0.0).silent(1.0, closed=True).startswith("process 0 on ")


def test_the_launcher_passes_on_what_fails():
    launcher = ["launch/multiprocess.sh", "2", "--devices", "1"]
    shown = subprocess.run(
        [*launcher, "--dry-run", "--", "--config", "x.py", "--workdir", "a b"], capture_output=True, text=True
    )
    assert shown.returncode == 0 and len(shown.stdout.splitlines()) == 2
    assert "--workdir a\\ b --coordinator_address localhost:" in shown.stdout
    failed = subprocess.run(
        [*launcher, "--", "--config", "absent.py", "--workdir", "x"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert failed.returncode == 2
    assert "\n[1] error: --config absent.py: there is no such file" in f"\n{failed.stderr}"


def test_the_launcher_passes_on_signals(tmp_path):
    config = tmp_path / "config.py"
    config.write_text("import time\nprint('here')\ntime.sleep(100)\n")
    process = subprocess.Popen(
        ["launch/multiprocess.sh", "2", "--", "--config", config, "--workdir", tmp_path / "run"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert sorted(process.stdout.readline() for _ in (0, 1)) == ["[0] here\n", "[1] here\n"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
