"""Worker processes, started by Grain: they do what is on a desk, and what comes of it is given in order."""

import contextlib
import dataclasses
import functools
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import util
from typing import Any

import grain
import numpy as np
from absl import flags

from inti_jax.data.loading import shared
from inti_jax.data.loading.rows import Order, Row, sendable
from inti_jax.data.loading.shared import Desk, Slots, Task
from inti_jax.errors import UserError
from inti_jax.host import limits

log = logging.getLogger("inti_jax")

# File descriptors of this process for each worker: both ends of Grain's three queues, and the two by which
# multiprocessing knows that the process has ended.
FILES_OF_A_WORKER = 8
# For each order that is loaded at a time: its slots, and what is sent to the workers.
FILES_OF_A_JOB = 2 * shared.FILES
# For the pool: the desk; Grain's counters in shared memory (a file and its mapping, for each 512 workers);
# multiprocessing's resource tracker; the pipe of the thread pool that Grain frees memory by.
_FILES_OF_THE_DESK, _FILES_OF_COUNTERS, _COUNTERS, _FILES_OF_THE_REST = shared.FILES, 2, 512, 3
# Orders that a run loads at a time: the training's and an evaluation's.
_JOBS = 2

# For how many seconds a worker may load one row: fewer than `hosts.stall_seconds`, which knows of no video.
# And for how many when nobody waits for it any more.
ROW_SECONDS = 240
_LAST_ROW_SECONDS = 10
# Most tasks that are handed out and not back yet.
MOST_TASKS = 2**15
# What Grain calls its processes.
_PROCESS_NAME = "grain-process-prefetch"
# Bytes: a little less than glibc's largest threshold for mmap.
_MALLOC_MAX = 31 * 2**20


def files_needed(workers: int, jobs: int = _JOBS) -> int:
    """Count the file descriptors that a pool of `workers` takes in this process, loading `jobs` orders."""
    counters = _FILES_OF_COUNTERS * -(-workers // _COUNTERS)
    pool = _FILES_OF_THE_DESK + counters + _FILES_OF_THE_REST
    return pool + workers * FILES_OF_A_WORKER + jobs * FILES_OF_A_JOB


def affordable(workers: int, *, exactly: bool) -> int:
    """Count the workers, of `workers`, that the limit of open files allows; it is raised for them first.

    Raises UserError where it does not allow all and `exactly` so many are wanted.
    """
    open_now = limits.open_files() + limits.SPARE_FILES
    needed = open_now + files_needed(workers)
    limit = limits.raise_file_limit(needed)
    if needed <= limit:
        return workers
    fit = max(0, (limit - open_now - files_needed(0) - _FILES_OF_COUNTERS) // FILES_OF_A_WORKER)
    message = f"{workers} worker processes need {needed} open files, and the hard limit is {limit}"
    if exactly:
        threads = "" if fit else ", with which threads load"
        raise UserError(f"{message}: raise it (ulimit -Hn), or set `data.workers={fit}`{threads}")
    log.warning("%s: %s", message, f"{fit} are started" if fit else "threads load instead")
    return fit


@dataclasses.dataclass(frozen=True)
class Work:
    """What a worker has of a job."""

    order: Order
    load: Callable[[Any], Row]
    slots: Slots

    def __call__(self, number: int, slot: int) -> Row:
        """Load row `number`: its video goes into the slot, the rest is given, or what loading raised."""
        if not self.slots.wanted:
            return {}
        row = self.load(self.order[number])
        self.slots[slot][...] = row.pop("video")
        return row


class Pool(Iterator[Row]):
    """Processes that do the tasks of a desk, and give what came of them in order."""

    def __init__(self, workers: int, threads: int):
        self._desk = Desk(MOST_TASKS)
        self._put = self._got = 0
        self._others = set(multiprocessing.active_children())
        if not flags.FLAGS.is_parsed():  # Grain reads its own, also in programs that use no absl flags
            flags.FLAGS.mark_as_parsed()
        tasks = grain.MapDataset.source(range(2**60)).map(functools.partial(_do, self._desk))
        # Workers are spawned, never forked: a fork of a process that runs JAX may hang. What bounds the rows
        # that are loaded ahead are the slots.
        done = tasks.to_iter_dataset(grain.ReadOptions(threads, threads)).mp_prefetch(
            grain.MultiprocessingOptions(workers, per_worker_buffer_size=64),
            worker_init_fn=functools.partial(_start_worker, self._desk),
        )
        self._rows = iter(done)
        self._watch = _Watch(self._desk)
        # A program may end, or drop this, without closing it: Grain then waits for the workers.
        self._finalizer = util.Finalize(
            self, _close_or_end, (weakref.ref(self), self._watch), exitpriority=10
        )
        self._watch.start()
        self._kill: threading.Timer | None = None

    def put(self, task: Task) -> None:
        """Hand out a task."""
        self._desk.put(self._put, task)
        self._put += 1

    def __next__(self) -> Row:
        try:
            row = next(self._rows)
        except OSError:
            _leave_unstarted()
            raise
        self._got += 1
        return row

    @property
    def stuck(self) -> int | None:
        """Which of the tasks that are handed out and not back came to no end."""
        return None if self._watch.stuck is None else self._watch.stuck - self._got

    def stop(self) -> None:
        """Have every worker end after the row that it is at, or killed there. From any thread."""
        if not self._desk.stopped:
            self._watch.end()
            self._kill = threading.Timer(_LAST_ROW_SECONDS, self._watch.kill)
            self._kill.daemon = True
            self._kill.start()

    def close(self) -> None:
        self._finalizer.cancel()
        self.stop()
        try:
            self._rows.close()
        except Exception as error:  # Grain's does not expect processes that could not be started
            log.debug("closing the worker processes: %s", error)
        finally:
            if self._kill is not None:
                self._kill.cancel()
            self._watch.join()
            self._kill_the_rest()
            self._desk.close()
            self._rows = iter(())  # Grain's do not end well when the interpreter does
            gc.collect()  # Grain's queues hold their descriptors as long as they refer to each other

    def _kill_the_rest(self) -> None:
        """End what Grain left behind: the interpreter would wait for it at its end, and in vain."""
        for process in multiprocessing.active_children():
            if process not in self._others and process.name.startswith(_PROCESS_NAME):
                process.kill()
                process.join()


def _leave_unstarted() -> None:
    """Say nothing of Grain's processes that could not be started, when they are deleted."""
    report = sys.unraisablehook

    def report_others(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "can only join a started process":
            report(unraisable)

    sys.unraisablehook = report_others


def _close_or_end(pool: "weakref.ref[Pool]", watch: "_Watch") -> None:
    found = pool()
    if found is None:  # then Grain closes its own
        watch.end()
    else:
        found.close()


class _Watch(threading.Thread):
    """Looks every second at which tasks the workers are, and kills them when one comes to no end."""

    def __init__(self, desk: Desk):
        super().__init__(daemon=True, name="watch-workers")
        self._desk = desk
        self._ended = threading.Event()
        self.stuck: int | None = None  # the task that came to no end

    def run(self) -> None:
        seconds: Counter[int] = Counter()
        while not self._ended.wait(1.0):
            # Counted, not read from a clock: where this process is stopped, its workers mostly are too.
            seconds = Counter({task: seconds[task] + 1 for task in self._at_work()})
            if late := [task for task, count in seconds.items() if count >= ROW_SECONDS]:
                self.stuck = min(late)
                self.kill()
                return

    def end(self) -> None:
        """Let the workers end, and this thread."""
        self._desk.stop()
        self._ended.set()

    def kill(self) -> None:
        for process in set(self._at_work().values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def _at_work(self) -> dict[int, int]:
        """The workers, by the task that they are at. One that died still stands on the desk."""
        alive = {process.pid for process in multiprocessing.active_children()}
        return {task: process for task, process in self._desk.workers().items() if process in alive}


# --------------------------------------------------------------------------------------------------
# In a worker.


def _do(desk: Desk, k: int) -> Row:
    """Do task k, when it is there. What it raises is given, for the job whose it is."""
    task = desk.wait(k)
    if task is None:
        return {}
    try:
        work = _work(task.work)
    except FileNotFoundError:  # the job was closed
        return {}
    try:
        with desk.doing(k):
            return work(task.number, task.slot)
    except Exception as error:  # whatever a decoder of somebody else's raises
        sent = sendable(error)
        where = "".join(traceback.format_tb(error.__traceback__)).rstrip()
        sent.add_note(f"in a worker process:\n{where}")
        return {"error": sent}


# The training's, and an evaluation's.
_work = functools.lru_cache(_JOBS)(shared.received)


def _start_worker(desk: Desk, *_: int) -> None:
    # Ctrl-C and SIGHUP go to all processes of a terminal, a scheduler's SIGTERM to all of a job: the run
    # answers them.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _end_with_parent()
    _keep_freed_memory()


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, which Grain's would outlive for ever."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="end-with-parent").start()


def _keep_freed_memory() -> None:
    """Let glibc keep what a row's arrays took for the next row's.

    It gives back to the system, which has to clear it for the next row, what is over twice the largest block
    ever freed (mallopt(3), on M_MMAP_THRESHOLD). So one large block is freed here.
    """
    np.empty(_MALLOC_MAX, np.uint8)
