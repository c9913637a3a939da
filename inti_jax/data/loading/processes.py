"""Run the tasks of a desk in worker processes, started by Grain, and return the rows in order."""

import contextlib
import dataclasses
import faulthandler
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

# File descriptors that each worker takes in this process: both ends of Grain's three queues, and the two by
# which multiprocessing notices that the worker has ended.
FILES_OF_A_WORKER = 8
# File descriptors for each order that is loaded at a time: its slots, and the work sent to the workers.
FILES_OF_A_JOB = 2 * shared.FILES
# File descriptors for the pool: the desk; Grain's counters in shared memory (a file and its mapping for each
# 512 workers); multiprocessing's resource tracker; the pipe of the thread pool by which Grain frees memory.
_FILES_OF_THE_DESK, _FILES_OF_COUNTERS, _COUNTERS, _FILES_OF_THE_REST = shared.FILES, 2, 512, 3
# Orders that a run loads at a time: those of training and of an evaluation.
_JOBS = 2

# Seconds that a worker may take for one row. They are fewer than `hosts.stall_seconds`, whose error cannot
# name the video. `_LAST_ROW_SECONDS` are for a row that nobody waits for any more.
ROW_SECONDS = 240
_LAST_ROW_SECONDS = 10
# The signal by which a worker prints where each of its threads is, and the seconds that it has for it.
_SHOW, _SHOW_SECONDS = signal.SIGUSR1, 0.5
# Most tasks that may be handed out and not back yet.
MOST_TASKS = 2**15
# The start of the names of Grain's processes.
_PROCESS_NAME = "grain-process-prefetch"
# Bytes, a little less than glibc's largest threshold for mmap.
_MALLOC_MAX = 31 * 2**20


def files_needed(workers: int, jobs: int = _JOBS) -> int:
    """Count the file descriptors that a pool of `workers` takes in this process to load `jobs` orders."""
    counters = _FILES_OF_COUNTERS * -(-workers // _COUNTERS)
    pool = _FILES_OF_THE_DESK + counters + _FILES_OF_THE_REST
    return pool + workers * FILES_OF_A_WORKER + jobs * FILES_OF_A_JOB


def affordable(workers: int, *, exactly: bool) -> int:
    """Raise the limit of open files for `workers`, and count those of them that it allows.

    Raises UserError if it does not allow all of them and `exactly` so many are wanted; otherwise logs a
    warning.
    """
    open_now = limits.open_files() + limits.SPARE_FILES
    needed = open_now + files_needed(workers)
    limit = limits.raise_file_limit(needed)
    if needed <= limit:
        return workers
    fit = max(0, (limit - open_now - files_needed(0) - _FILES_OF_COUNTERS) // FILES_OF_A_WORKER)
    message = f"{workers} worker processes need {needed} open files, and the hard limit is {limit}"
    if exactly:
        threads = "" if fit else ", which loads with threads"
        raise UserError(f"{message}: raise it (ulimit -Hn), or set `data.workers={fit}`{threads}")
    log.warning("%s: %s", message, f"starting {fit}" if fit else "loading with threads instead")
    return fit


@dataclasses.dataclass(frozen=True)
class Work:
    """A worker's copy of a job: its order, its loading function and its slots."""

    order: Order
    load: Callable[[Any], Row]
    slots: Slots

    def __call__(self, number: int, slot: int) -> Row:
        """Load row `number`, write its video into the slot, and return the rest of the row.

        Returns an empty row if the slots are no longer wanted. Raises what loading raises.
        """
        if not self.slots.wanted:
            return {}
        row = self.load(self.order[number])
        self.slots[slot][...] = row.pop("video")
        return row


class Pool(Iterator[Row]):
    """A pool of worker processes that do the tasks of a desk, and return their rows in order."""

    def __init__(self, workers: int, threads: int):
        self._desk = Desk(MOST_TASKS)
        self._put = self._got = 0
        self._others = set(multiprocessing.active_children())
        if not flags.FLAGS.is_parsed():  # Grain reads absl flags of its own, also in programs that use none
            flags.FLAGS.mark_as_parsed()
        tasks = grain.MapDataset.source(range(2**60)).map(functools.partial(_do, self._desk))
        # Workers are spawned, never forked: a fork of a process that runs JAX may hang. The number of slots
        # bounds the rows that are loaded ahead.
        done = tasks.to_iter_dataset(grain.ReadOptions(threads, threads)).mp_prefetch(
            grain.MultiprocessingOptions(workers, per_worker_buffer_size=64),
            worker_init_fn=functools.partial(_start_worker, self._desk),
        )
        self._rows = iter(done)
        self._watch = _Watch(self._desk)
        # A program may end, or drop the pool, without closing it. Grain would then wait for the workers.
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
        """The hanging task's position among those that are handed out and not back, or None."""
        return None if self._watch.stuck is None else self._watch.stuck - self._got

    def stop(self) -> None:
        """End every worker after its current row, or kill it if that takes too long. From any thread."""
        if not self._desk.stopped:
            self._watch.end()
            self._kill = threading.Timer(_LAST_ROW_SECONDS, self._watch.kill)
            self._kill.daemon = True
            self._kill.start()

    def close(self) -> None:
        """End the workers, and release the processes, files and memory of the pool."""
        self._finalizer.cancel()
        self.stop()
        try:
            self._rows.close()
        except Exception as error:  # Grain's close fails for processes that could not be started
            log.debug("closing the worker processes: %s", error)
        finally:
            if self._kill is not None:
                self._kill.cancel()
            self._watch.join()
            self._kill_the_rest()
            self._desk.close()
            self._rows = iter(())  # Grain's iterators do not end well when the interpreter ends
            gc.collect()  # frees Grain's queues, which are in reference cycles and hold descriptors

    def _kill_the_rest(self) -> None:
        """Kill the processes that Grain left behind; the interpreter would wait for them in vain at exit."""
        for process in multiprocessing.active_children():
            if process not in self._others and process.name.startswith(_PROCESS_NAME):
                process.kill()
                process.join()


def _leave_unstarted() -> None:
    """Silence the errors of Grain's processes that could not be started, when they are deleted."""
    report = sys.unraisablehook

    def report_others(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "can only join a started process":
            report(unraisable)

    sys.unraisablehook = report_others


def _close_or_end(pool: "weakref.ref[Pool]", watch: "_Watch") -> None:
    found = pool()
    if found is None:  # the pool is gone, and Grain closes its own processes
        watch.end()
    else:
        found.close()


class _Watch(threading.Thread):
    """A thread that looks at the workers' tasks every second.

    When a task hangs, the workers print where they are, and are killed.
    """

    def __init__(self, desk: Desk):
        super().__init__(daemon=True, name="watch-workers")
        self._desk = desk
        self._ended = threading.Event()
        self.stuck: int | None = None  # the task that hangs

    def run(self) -> None:
        """Count the seconds of each task, and kill the workers when one reaches `ROW_SECONDS`."""
        seconds: Counter[int] = Counter()
        while not self._ended.wait(1.0):
            # Counted, not read from a clock: when this process is suspended, its workers mostly are too.
            seconds = Counter({task: seconds[task] + 1 for task in self._at_work()})
            if late := [task for task, count in seconds.items() if count >= ROW_SECONDS]:
                self.stuck = min(late)
                at_work = self._at_work()
                for process in {at_work[task] for task in late if task in at_work}:
                    _send(_SHOW, process)
                    self._ended.wait(_SHOW_SECONDS)  # one after the other, so that their lines do not mix
                self.kill()
                return

    def end(self) -> None:
        """Let the workers and this thread end."""
        self._desk.stop()
        self._ended.set()

    def kill(self) -> None:
        """Kill the workers that are at a task."""
        for process in set(self._at_work().values()):
            _send(signal.SIGKILL, process)

    def _at_work(self) -> dict[int, int]:
        """Return the live workers by the task that they are at; the desk still lists those that died."""
        alive = {process.pid for process in multiprocessing.active_children()}
        return {task: process for task, process in self._desk.workers().items() if process in alive}


def _send(number: signal.Signals, process: int) -> None:
    """Send a signal to a process, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


# --------------------------------------------------------------------------------------------------
# Code that runs in a worker.


def _do(desk: Desk, k: int) -> Row:
    """Wait for task k and do it.

    An exception is returned as the row's `error`, for the job that the task belongs to. The row is empty
    if the desk was stopped or the job closed.
    """
    task = desk.wait(k)
    if task is None:
        return {}
    with _first_alone(task.work):
        try:
            work = _work(task.work)
        except FileNotFoundError:  # the job was closed
            return {}
        try:
            with desk.doing(k):
                return work(task.number, task.slot)
        except Exception as error:  # whatever a third party's decoder raises
            sent = sendable(error)
            where = "".join(traceback.format_tb(error.__traceback__)).rstrip()
            sent.add_note(f"in a worker process:\n{where}")
            return {"error": sent}


# Keeps the work of training and of an evaluation.
_work = functools.lru_cache(_JOBS)(shared.received)

_beginning = threading.Lock()
_begun: set[shared.Place] = set()  # the works of which a row has been loaded


@contextlib.contextmanager
def _first_alone(work: shared.Place) -> Iterator[None]:
    """Let no other thread of this worker begin while the first row of `work` is loaded.

    The first row imports modules. Modules that import others on first use, as those of TFDS do, take a lock
    of their own for it, so two threads that begin at once could wait for each other for ever.
    """
    with contextlib.ExitStack() as alone:
        if work not in _begun:
            alone.enter_context(_beginning)
        yield
        _begun.add(work)


def _start_worker(desk: Desk, *_: int) -> None:
    # Ctrl-C and SIGHUP go to all processes of a terminal, a scheduler's SIGTERM to all of a job. The run's
    # main process answers them, so workers ignore them.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.stderr is not None:
        faulthandler.register(_SHOW, file=sys.stderr)
    _end_with_parent()
    _keep_freed_memory()


def _end_with_parent() -> None:
    """End this process when its parent is gone; Grain's processes would outlive it for ever."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="end-with-parent").start()


def _keep_freed_memory() -> None:
    """Make glibc keep the memory of a row's arrays for the next row.

    glibc returns free memory to the system above twice the largest block ever freed (mallopt(3), on
    M_MMAP_THRESHOLD), and the system has to clear it for the next row. So one large block is freed here.
    """
    np.empty(_MALLOC_MAX, np.uint8)
