"""Load all rows of a run with one pool of worker processes, which is replaced when a worker dies.

A worker reads from a desk in shared memory which row to load next. So one pool loads the rows of training
and, between them, those of an evaluation.
"""

import errno
import logging
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from inti_jax.data.loading import processes
from inti_jax.data.loading.processes import Pool, Work
from inti_jax.data.loading.rows import Order, Row, index_of, stacked
from inti_jax.data.loading.shared import Sent, Slots, Task
from inti_jax.errors import UserError
from inti_jax.host import limits

log = logging.getLogger("inti_jax")

# Deaths of workers in a row, without a batch between them, that end the loading.
_DEATHS = 3
# Grain's message for a worker that died.
_WORKER_DIED = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")


class LoadingError(UserError):
    """An error in loading batches: worker processes keep dying, one hangs, or the batches were closed."""


class Workers:
    """A pool of `count` worker processes, with `threads` loading threads in each.

    The first batch starts them. Any thread may open, read and close jobs, but only one thread at a time may
    read a job.
    """

    def __init__(self, count: int, threads: int):
        self.count, self.threads = count, threads
        self._changing = threading.RLock()  # guards the attributes below
        self._reading = threading.Lock()  # held by the one reader of Grain; taken before `_changing`
        self._jobs: list[Job] = []
        self._handed_out: deque[tuple[Job, int]] = deque()  # rows that are not back yet, in desk order
        self._pool: Pool | None = None
        self._deaths = 0  # since the last complete batch
        self._error: Exception | None = None
        self._closed = False

    def open(
        self,
        order: Order,
        load: Callable[[Any], Row],
        shape: tuple[int, ...],
        *,
        prefetch: int,
        first_batch: int = 0,
    ) -> "Job":
        """Start to load the rows of `order` from `first_batch` on, `prefetch` batches ahead.

        A row's video is uint8 of `shape`.
        """
        size = len(order.rows)
        ahead = max(prefetch * size, self.count * self.threads)
        job = Job(self, order, load, Slots(size + ahead, shape), first_batch)
        with self._changing:
            self._jobs.append(job)
        return job

    def close(self) -> None:
        """End the processes and all jobs, from any thread.

        A thread that waits for a batch gets LoadingError.
        """
        with self._changing:
            if self._closed:
                return
            self._closed = True
            if self._pool is not None:
                self._pool.stop()
        with self._reading, self._changing:
            pool, self._pool = self._pool, None
            if pool is not None:
                pool.close()
            for job in self._jobs:
                job.free()
            self._jobs.clear()
            self._handed_out.clear()

    def _batch(self, job: "Job") -> Any:
        size = job.size
        while True:
            with self._changing:
                self._check(job)
                self._hand_out()
                if job.released + size > len(job.order):
                    raise StopIteration
                if len(job.ready) >= size:
                    break
            with self._reading:
                if len(job.ready) < size:  # else another job's thread has read them
                    self._read()
        batch = job.take()
        with self._changing:
            self._check(job)  # the slots of a closed one read as zeros
            self._deaths = 0
            job.released += size
            self._hand_out()
        return batch

    def _check(self, job: "Job") -> None:
        if self._error is not None:
            raise self._error
        if self._closed or job.closed:
            raise LoadingError("the batches were closed while a caller waited for one")
        if job.error is not None:
            raise job.error

    def _hand_out(self) -> None:
        for job in self._jobs:
            while job.has_more() and len(self._handed_out) < processes.MOST_TASKS:
                if self._pool is not None:
                    self._pool.put(job.task(job.next_row))
                self._handed_out.append((job, job.next_row))
                job.next_row += 1
                job.pending += 1

    def _started(self) -> Pool:
        with self._changing:
            if self._closed:
                raise LoadingError("the worker processes were closed before they started")
            if self._pool is None:
                self._pool = Pool(self.count, self.threads)
                for job, row in self._handed_out:
                    self._pool.put(job.task(row))
            return self._pool

    def _read(self) -> None:
        """Read the next row and pass it to its job; the caller holds `_reading`."""
        try:
            row = next(self._started())
        except Exception as error:  # whatever starting a process raises, or Grain for a dead one
            self._note(error)
            return
        with self._changing:
            if not self._closed:
                job, number = self._handed_out.popleft()
                job.pending -= 1
                if not job.closed:
                    job.ready.append((number, row))
                elif job.pending == 0:
                    self._forget(job)

    def _note(self, error: Exception) -> None:
        """Restart the pool after `error`, or end all jobs with it; the caller holds `_reading`."""
        with self._changing:
            if self._closed:
                return
            pool, self._pool = self._pool, None
        stuck = None
        if pool is not None:
            stuck = pool.stuck
            pool.close()  # may take seconds
        with self._changing:
            self._judge(error, stuck)

    def _judge(self, error: Exception, stuck: int | None) -> None:
        died = _WORKER_DIED.search(str(error)) if isinstance(error, RuntimeError) else None
        if stuck is not None:
            job, row = self._handed_out[stuck]
            self._error = LoadingError(
                f"loading the video of index {index_of(job.order[row])} did not finish in "
                f"{processes.ROW_SECONDS} s: the decoder or the storage hangs, where the threads above are"
            )
        elif died is not None:
            self._note_death(int(died[1]))
        elif isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            self._error = LoadingError(
                f"{os.strerror(error.errno)}: {self.count} worker processes do not fit the limit of "
                f"{limits.file_limits()[0]}; set `data.workers` lower, or raise the limit (ulimit -Hn)"
            )
        else:
            self._error = error
        if self._error is None:  # all workers start anew, from the row that is due
            for job in [job for job in self._jobs if job.closed]:
                self._forget(job)
            self._handed_out = deque((job, row) for job, row in self._handed_out if not job.closed)

    def _note_death(self, exit_code: int) -> None:
        self._deaths += 1
        job, row = self._handed_out[0]
        batch = row // job.size
        how = f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exited ({exit_code})"
        if self._deaths < _DEATHS:
            log.warning("a worker process %s: restarting the workers at batch %d", how, batch)
            return
        rows = range(batch * job.size, min((batch + 1) * job.size, len(job.order)))
        indices = [index_of(job.order[row]) for row in rows[:16]]
        self._error = LoadingError(
            f"worker processes died {self._deaths} times in a row before batch {batch}; the last one {how}: "
            f"{_why(exit_code, indices)}"
        )

    def _close_job(self, job: "Job") -> None:
        with self._changing:
            if job.closed or self._closed:
                return
            job.closed = True
            job.slots.stop()
            job.next_row = len(job.order)
            if job.pending == 0 or self._pool is None:
                self._handed_out = deque((other, row) for other, row in self._handed_out if other is not job)
                self._forget(job)

    def _forget(self, job: "Job") -> None:
        job.free()
        self._jobs.remove(job)


class Job:
    """The batches of one order, loaded by a pool; made by `Workers.open`."""

    def __init__(
        self, workers: Workers, order: Order, load: Callable[[Any], Row], slots: Slots, first_batch: int
    ):
        self.order, self.slots, self.size = order, slots, len(order.rows)
        self.work = Sent(Work(order, load, slots))
        self.next_row = self.released = first_batch * self.size  # next to hand out; first not done with
        self.pending = 0  # handed out and not back yet
        self.ready: deque[tuple[int, Row]] = deque()  # rows that are back, their videos in their slots
        self.error: Exception | None = None  # raised in loading one of its rows
        self.closed = False
        self._workers = workers

    def __next__(self) -> Any:
        return self._workers._batch(self)

    def close(self) -> None:
        """Stop loading rows for this job, from any thread; the workers go on for other jobs."""
        self._workers._close_job(self)

    def has_more(self) -> bool:
        """Tell whether a row can be handed out: one is left, and a slot is free for it."""
        return self.next_row < min(len(self.order), self.released + self.slots.count)

    def task(self, row: int) -> Task:
        """Return the task of loading `row` into its slot."""
        return Task(self.work.place, row, row % self.slots.count)

    def take(self) -> Any:
        """Return the next batch of the rows that are ready. Raises what loading one of them raised."""
        rows = []
        for number, row in [self.ready.popleft() for _ in range(self.size)]:
            if "error" in row:
                self.error = row["error"]
                raise row["error"]
            rows.append(row | {"video": self.slots[number % self.slots.count]})
        return stacked(rows)

    def free(self) -> None:
        """Mark the job as closed and free its shared memory."""
        self.closed = True
        self.slots.close()
        self.work.close()


def _why(exit_code: int, indices: list[int]) -> str:
    """Name the most likely cause of workers' deaths while they load the videos of `indices`."""
    if exit_code == -signal.SIGKILL:
        return "memory probably ran out: lower `data.workers` or `data.prefetch`"
    if exit_code < 0:
        listed = ", ".join(map(str, indices))
        return f"a video probably crashes the decoder: one of the indices {listed}, or one soon after"
    return "its traceback is above"
