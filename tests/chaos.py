"""Trainings of two processes that are killed at random: `python -m tests.chaos --runs 50 [--store gs]`.

Each run is hit by one to three faults, one after the other, and started again after each: SIGKILL of one
process or both, SIGTERM to one or both, either of these while a checkpoint is being written, or a full disk
(a small tmpfs, where this user may mount one). With `--store gs` the runs lie in an emulated bucket, which
for some seconds refuses requests, is slow, cuts connections or lacks the permission to delete, in place of
full disks. What has to hold:

- no process lives longer than its limit after a fault, unless it waits for others to start, which it does for
  five minutes: then it gets SIGTERM, as launchers do;
- a restart goes on from the newest checkpoint that was whole, after SIGTERM from the last step that was done;
- in the end the metrics are those of an undisturbed run to the last bit, apart from times.

What is drawn for run i is a function of the seed and i alone: `--only i` replays it, up to how fast the
machine is. Of a run that does not hold, what its processes said and its workdir are kept, in a directory
that is printed with the command that repeats it. Exits with 1 if there was any.
"""

import argparse
import contextlib
import dataclasses
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from inti_jax.host import stores
from tests.processes import start_main
from tests.records import computed
from tests.stores.emulator import BUCKET, Emulator, Faults, running

PROCESSES = 2
STEPS = 30  # of a run by hand
# Seconds until all processes have ended: a whole run, and what is left after a fault.
RUN_LIMIT = 240
FAULT_LIMIT = 90
# The share of all faults that come before the first step.
STARTED = 0.25

_SIGNALS = ("kill one", "kill all", "term one", "term all", "kill in save", "term in save")
_OF_STORE = {
    "refusals": {"unavailable": 0.5},
    "slowness": {"slow": 0.5},
    "cuts": {"cut": 0.3},
    "no deletion": {"may_delete": False},
}
KINDS = {"disk": (*_SIGNALS, "full disk"), "gs": (*_SIGNALS, *_OF_STORE)}
# Seconds that a fault of the store lasts.
_OUTAGE = 8
# Bytes of the disk that becomes full: three checkpoints, what is being written, and the rest of a run.
_DISK = 64 * 2**20


class Broken(Exception):  # noqa: N818 - the runs' fault, not the program's
    """Something that has to hold did not."""


@dataclasses.dataclass(frozen=True)
class Fault:
    kind: str
    moment: float  # before `STARTED`, of the time to the first step; else of the steps; in a save, of 0.3 s
    victim: int


def draw(seed: int, number: int, kinds: tuple[str, ...]) -> list[Fault]:
    rng = random.Random(f"{seed}-{number}")
    return [
        Fault(rng.choice(kinds), rng.random(), rng.randrange(PROCESSES)) for _ in range(rng.randint(1, 3))
    ]


class Directory:
    """A directory on a disk for a run."""

    def __init__(self, disk: Path, data: Path):
        self.disk, self.data_dir = disk, str(data)
        self.workdir = str(disk / "run")

    def names(self) -> list[str]:
        """The paths of all files of the run, below its directory."""
        root = Path(self.workdir)
        # A directory may go while it is walked.
        return [
            str(Path(directory, name).relative_to(root))
            for directory, _, files in os.walk(root)
            for name in files
        ]

    def strike(self, kind: str) -> None:
        """Fill the disk."""
        assert kind == "full disk"
        with contextlib.suppress(OSError), (self.disk / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))

    def recover(self) -> None:
        """Empty the disk again."""
        (self.disk / "ballast").unlink(missing_ok=True)

    def records(self) -> list[dict[str, Any]]:
        """Read what the run computed."""
        return computed(Path(self.workdir))


class Bucket:
    """A directory in an emulated store for a run and a copy of its dataset."""

    def __init__(self, emulator: Emulator, disk: Path, data: Path):
        self._emulator, self.disk = emulator, disk
        self._below = f"{disk.name}/run/"
        self.workdir = f"gs://{BUCKET}/{disk.name}/run"
        self.data_dir = f"gs://{BUCKET}/{disk.name}/data"
        for path in data.rglob("*"):
            if path.is_file():
                stores.upload(path, f"{self.data_dir}/{path.relative_to(data)}")

    def names(self) -> list[str]:
        """The paths of all files of the run, below its directory."""
        return [name.removeprefix(self._below) for name in self._emulator.names(self._below)]

    def strike(self, kind: str) -> None:
        """Let the store have a fault, until `recover` or, of most kinds, for some seconds."""
        self._emulator.faults = Faults(**_OF_STORE[kind])
        if kind != "no deletion":
            threading.Timer(_OUTAGE, self.recover).start()

    def recover(self) -> None:
        """End the fault of the store."""
        self._emulator.faults = Faults()

    def records(self) -> list[dict[str, Any]]:
        """Read what the run computed."""
        (self.disk / "metrics.jsonl").write_bytes(self._emulator.read(f"{self._below}metrics.jsonl"))
        return computed(self.disk)


Place = Directory | Bucket


class Training:
    """Processes that train together at `place`, what they say in `logs`."""

    def __init__(self, place: Place, logs: Path, steps: int):
        self.steps = steps
        logs.mkdir(parents=True, exist_ok=True)
        # With the default `hosts.silent_seconds`: on a busy machine a healthy process may be silent for 10 s.
        arguments = [
            "--config", "configs/quickstart.py:compression=inti",
            "--workdir", place.workdir, f"--config.data.data_dir={place.data_dir}",
            f"--config.train.steps={steps}", f"--config.train.eval_every_steps={steps // 2}",
            "--config.train.global_batch=4", "--config.train.log_every_steps=1",
            "--config.checkpoint.every_steps=6", "--config.eval.batch=4", "--config.data.num_frames=4",
            "--config.model.scan=on",  # compiles sooner
        ]  # fmt: skip
        self._logs = [logs / f"{index}.log" for index in range(PROCESSES)]
        self.processes = start_main(self._logs, [arguments] * PROCESSES)

    def running(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    def wait(self, seconds: float) -> list[int]:
        """The exit statuses. Raises Broken where a process outlives `seconds`, and kills all."""
        deadline = time.monotonic() + seconds
        try:
            return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            for process in self.processes:
                process.send_signal(signal.SIGABRT)  # they say where their threads are
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
            raise Broken(f"not all processes ended in {seconds:.0f} s{self.said()}") from None
        finally:
            for process in self.processes:
                process.kill()
                process.wait()

    def log(self, index: int) -> str:
        return self._logs[index].read_text()

    def step(self) -> int:
        """The last step of which process 0 has said the figures."""
        steps = re.findall(r" train (\d+)/", self.log(0))
        return int(steps[-1]) if steps else 0

    def said(self) -> str:
        """The last lines of each process."""
        tails = ("\n    ".join(path.read_text().splitlines()[-5:]) for path in self._logs)
        return "".join(f"\n  [{index}] {tail}" for index, tail in enumerate(tails))


def finished_steps(place: Place) -> list[int]:
    found = (re.fullmatch(r"checkpoints/(\d+)/checksums.json", name) for name in place.names())
    return sorted(int(match[1]) for match in found if match)


def saving(place: Place) -> bool:
    """Tell whether there are files of a checkpoint that is not finished, or about to be deleted."""
    found = (re.match(r"checkpoints/(\d+)", name) for name in place.names())
    return not {int(match[1]) for match in found if match} <= set(finished_steps(place))


def await_save(training: Training, place: Place) -> None:
    """Until a checkpoint is being written, or the processes have ended."""
    while training.running() and not saving(place):
        time.sleep(0.005)


def await_moment(fault: Fault, training: Training, place: Place, start_time: float) -> None:
    """Wait until the fault is due, by steps, whose time varies, or until the processes have ended."""
    seconds = fault.moment / STARTED * start_time
    if fault.kind.endswith("in save"):
        await_save(training, place)
        seconds = fault.moment / 3
    elif fault.moment > STARTED:
        step = 1 + (fault.moment - STARTED) / (1 - STARTED) * (training.steps - 1)
        while training.running() and training.step() < step:
            time.sleep(0.005)
        return
    deadline = time.monotonic() + seconds
    while training.running() and time.monotonic() < deadline:
        time.sleep(0.01)


def strike(fault: Fault, training: Training, place: Place, start_time: float) -> None:
    """Wait for the fault's moment, and let it happen."""
    await_moment(fault, training, place, start_time)
    if fault.kind not in _SIGNALS:
        place.strike(fault.kind)
        return
    number = signal.SIGKILL if fault.kind.startswith("kill") else signal.SIGTERM
    victims = training.processes if fault.kind.endswith("all") else [training.processes[fault.victim]]
    for process in victims:
        process.send_signal(number)
    if " videos (" not in training.log(0):
        # They may not have found each other yet.
        time.sleep(5)
        for process in training.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)


def check_aftermath(fault: Fault, training: Training, statuses: list[int], place: Place) -> None:
    """Raises Broken where a fault ended otherwise than it should."""
    log = training.log(0)
    steps = finished_steps(place)
    if statuses == [0] * PROCESSES:
        return  # the fault came too late
    if fault.kind.startswith("term"):
        stopped = re.search(r"^stopped by SIGTERM at step (\d+)", log, re.MULTILINE)
        early = "stopped by SIGTERM before the first step" in log or -signal.SIGTERM in statuses
        if stopped and statuses == [128 + signal.SIGTERM] * PROCESSES:
            last = max((r["step"] for r in place.records() if r["split"] == "train"), default=0)
            if not steps or not steps[-1] == int(stopped[1]) == last:
                raise Broken(f"stopped at step {stopped[1]}, with checkpoints {steps} and records to {last}")
        elif not early:
            raise Broken(f"SIGTERM ended with {statuses}{training.said()}")
    if fault.kind == "full disk":
        said = [line for line in log.splitlines() if line.startswith("error: ")]
        if len(said) != 1 or "No space left on device" not in said[0] or place.workdir not in said[0]:
            raise Broken(f"a full disk ended with {statuses}{training.said()}")
    if fault.kind in _OF_STORE:
        said = [line for line in log.splitlines() if line.startswith("error: ")]
        if len(said) != 1 or "gs://" not in said[0] or "Traceback" in log:
            raise Broken(f"{fault.kind} of the store ended with {statuses}{training.said()}")


def survive(number: int, faults: list[Fault], run: "Runs", say: Callable[[str], None]) -> Place:
    """Take one run through `faults` to its end. Raises Broken, which names what is kept of the run."""
    with run.disk(any(fault.kind == "full disk" for fault in faults)) as disk:
        try:
            return _survive(number, faults, run, say, disk)
        except Exception as error:  # records that cannot be read, say: that does not hold either
            reason = str(error) if isinstance(error, Broken) else traceback.format_exc()
            raise Broken(f"{reason}\n  kept: {run.keep(number, disk)}") from error


def _survive(number: int, faults: list[Fault], run: "Runs", say: Callable[[str], None], disk: Path) -> Place:
    place = run.place(disk)
    for count, fault in enumerate([*faults, None]):
        expected = (finished_steps(place) or [0])[-1]
        training = Training(place, run.logs(number, count), run.steps)
        if fault is None:
            statuses = training.wait(RUN_LIMIT)
            if statuses != [0] * PROCESSES:
                raise Broken(f"the last start ended with {statuses}{training.said()}")
        else:
            strike(fault, training, place, run.start_seconds)
            struck = time.monotonic()
            # A fault of the store need not end the run.
            statuses = training.wait(RUN_LIMIT if fault.kind in _OF_STORE else FAULT_LIMIT)
            say(
                f"  {fault.kind} at {fault.moment:.2f}: statuses {statuses} after "
                f"{time.monotonic() - struck:.1f} s, checkpoints {finished_steps(place)}"
            )
            place.recover()
            check_aftermath(fault, training, statuses, place)
        resumed = re.search(r"resuming from the checkpoint of step (\d+)", training.log(0))
        if (resumed or fault is None) and int(resumed[1] if resumed else 0) != expected:
            raise Broken(f"went on from {resumed and resumed[1]} instead of {expected}{training.said()}")
    if place.records() != run.expected:
        raise Broken(f"the metrics differ from an undisturbed run's: {place.workdir}/metrics.jsonl")
    return place


class Runs:
    """The dataset, an undisturbed run, and where others work."""

    def __init__(
        self,
        directory: Path,
        data: Path | None = None,
        emulator: Emulator | None = None,
        steps: int = STEPS,
    ):
        self.directory = directory
        self.emulator = emulator
        self.steps = steps
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(directory / "compiled"))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
        os.environ["PYTHONFAULTHANDLER"] = "1"
        self.data = data or self._prepare(directory / "data")
        (directory / "whole").mkdir()
        # Undisturbed, on a disk.
        place = Directory(directory / "whole", self.data)
        whole = Training(place, directory / "logs-whole", steps)
        started = time.monotonic()
        while whole.running() and not whole.step():
            time.sleep(0.01)
        self.start_seconds = time.monotonic() - started
        statuses = whole.wait(RUN_LIMIT)
        if statuses != [0] * PROCESSES:
            raise Broken(f"the undisturbed run ended with {statuses}{whole.said()}")
        self.expected = place.records()

    def place(self, disk: Path) -> Place:
        """Give the place of a run that may use the directory `disk`."""
        if self.emulator is None:
            return Directory(disk, self.data)
        return Bucket(self.emulator, disk, self.data)

    @contextlib.contextmanager
    def disk(self, small: bool) -> Iterator[Path]:
        """A directory of its own; with `small`, on a disk that can be filled."""
        path = Path(tempfile.mkdtemp(dir=self.directory))
        if small:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", path], check=True)
        try:
            yield path
        finally:
            if small:
                subprocess.run(["umount", path], check=True)
            shutil.rmtree(path)

    def logs(self, number: int, start: int) -> Path:
        """Give the directory for the logs of one start of a run."""
        return self.directory / f"run-{number}" / f"start-{start}"

    def keep(self, number: int, disk: Path) -> Path:
        """Keep what is on the disk of a run beside what its processes said; gives the directory of both."""
        place = self.directory / f"run-{number}"
        shutil.copytree(disk, place / "disk", ignore=shutil.ignore_patterns("ballast"))
        shutil.copy(self.directory / "whole" / "run" / "metrics.jsonl", place / "expected.jsonl")
        return place

    def can_mount(self) -> bool:
        try:
            with self.disk(small=True):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False

    @staticmethod
    def _prepare(directory: Path) -> Path:
        from inti_jax.data.builders.motion_digits import MotionDigits

        MotionDigits(data_dir=directory, movements={"train": 20, "val": 10}).build()
        return directory


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--only", type=int, nargs="*", metavar="I", help="these runs alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", choices=KINDS, default="disk", help="where the runs lie")
    every = tuple(dict.fromkeys(kind for kinds in KINDS.values() for kind in kinds))
    parser.add_argument("--kinds", choices=every, nargs="*", help="faults of these kinds alone")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        emulator = stack.enter_context(running()) if arguments.store == "gs" else None
        if emulator is not None:
            os.environ.update(emulator.environment())
        return _main(arguments, emulator)


def _main(arguments: argparse.Namespace, emulator: Emulator | None) -> int:
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    runs = Runs(directory, emulator=emulator)
    print(
        f"undisturbed: {runs.start_seconds:.0f} s to step 1, {len(runs.expected)} records; in {directory}",
        flush=True,
    )
    kinds = tuple(arguments.kinds or KINDS[arguments.store])
    if "full disk" in kinds and not runs.can_mount():
        kinds = tuple(kind for kind in kinds if kind != "full disk")
        print("skipped: full disks, since this user may not mount a tmpfs", flush=True)
    broken, struck = [], 0
    numbers = range(arguments.runs) if arguments.only is None else arguments.only
    for number in numbers:
        faults = draw(arguments.seed, number, kinds)
        print(f"run {number} of seed {arguments.seed}:", flush=True)
        try:
            survive(number, faults, runs, lambda text: print(text, flush=True))
        except Broken as error:
            broken.append(number)
            again = f"python -m tests.chaos --store {arguments.store} --seed {arguments.seed} --only {number}"
            if set(kinds) != set(KINDS[arguments.store]):
                again += " --kinds " + " ".join(map(shlex.quote, kinds))
            print(f"  BROKEN: {error}\n  again: {again}", flush=True)
        else:
            shutil.rmtree(directory / f"run-{number}")
        struck += len(faults)
    print(f"{len(numbers)} runs of seed {arguments.seed}, {struck} faults, {len(broken)} broken: {broken}")
    if not broken:
        shutil.rmtree(directory)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
