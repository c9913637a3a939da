"""Rows into batches, in order, by Grain: by threads, or by worker processes, replaced when they die."""

import contextlib
import functools
import logging
import multiprocessing
import os
import pickle
import re
import signal
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import util
from typing import Any, Protocol, runtime_checkable

import grain
import jax
import numpy as np
from absl import flags

from inti_jax import config, limits
from inti_jax.data.shared import Sent, Slots
from inti_jax.errors import UserError

log = logging.getLogger("inti_jax")

# How often in a row workers may die before the same batch.
_DEATHS = 3
# For how many seconds a worker may load one row: fewer than `hosts.stall_seconds`, which knows of no video.
# And for how many when nobody waits for it any more.
_ROW_SECONDS = 240
_LAST_ROW_SECONDS = 10
# Bytes: a little less than glibc's largest threshold for mmap.
_MALLOC_MAX = 31 * 2**20
# What Grain says of a worker that died.
_WORKER_DIED = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")

Row = dict[str, Any]


class LoadingError(UserError):
    """Batches cannot be loaded: worker processes keep dying, or one hangs at a row."""


@runtime_checkable
class Order(Protocol):
    """What is to be loaded: `rows` of each batch are this host's, batch by batch."""

    rows: Sequence[int]

    def __len__(self) -> int: ...

    def __getitem__(self, k: int) -> Any: ...


class Batches(Iterator[Any]):
    """Batches `first` and on of `order`, each row loaded by `load` in threads or worker processes.

    A row has `video`, a uint8 array of `shape`, and scalars. Raises LoadingError, and what `load` raises.
    Close it in the thread that iterates.
    """

    def __init__(
        self,
        order: Order,
        load: Callable[[Any], Row],
        cfg: config.Data,
        shape: tuple[int, ...],
        first: int = 0,
    ):
        self._order, self._cfg, self._shape = order, cfg, shape
        self._load = functools.partial(_checked, load, shape)
        self._host_batch = len(order.rows)
        self._due = first
        self._deaths = 0
        self._loading: _Threads | _Workers | None = None

    def __next__(self) -> Any:
        while True:
            if self._loading is None:
                self._loading = self._start()
            try:
                batch = next(self._loading)
            except RuntimeError as error:
                died = _WORKER_DIED.search(str(error))
                if died is None:
                    raise
                self.close()
                self._note_death(int(died[1]))
                continue  # all of them anew, from the batch that is due
            self._due += 1
            self._deaths = 0
            return batch

    def close(self) -> None:
        loading, self._loading = self._loading, None
        if loading is not None:
            loading.close()

    def _start(self) -> "_Threads | _Workers":
        first_row = self._due * self._host_batch
        if workers := worker_count(self._cfg, self._host_batch):
            return _Workers(self._order, self._load, self._cfg, self._shape, first_row, workers)
        return _Threads(self._order, self._load, self._cfg, first_row)

    def _note_death(self, exit_code: int) -> None:
        self._deaths += 1
        how = f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exited ({exit_code})"
        if self._deaths < _DEATHS:
            log.warning("a worker process %s: the workers start anew at batch %d", how, self._due)
            return
        rows = range(self._due * self._host_batch, min((self._due + 1) * self._host_batch, len(self._order)))
        indices = ", ".join(str(_index(self._order[row])) for row in rows[:16])
        if exit_code == -signal.SIGKILL:
            why = "memory ran out, most likely: lower `data.workers` or `data.prefetch`"
        elif exit_code < 0:
            why = f"a video crashes the decoder, most likely: one of the indices {indices}, or soon after"
        else:
            why = "its traceback is above"
        raise LoadingError(
            f"worker processes died {self._deaths} times in a row before batch {self._due}; "
            f"the last one {how}: {why}"
        )


def worker_count(cfg: config.Data, host_batch: int) -> int:
    """Worker processes of a host that loads `host_batch` videos a batch: `cfg.workers`, or what suits."""
    if cfg.workers >= 0:
        return cfg.workers
    if jax.default_backend() == "cpu":
        return 0  # the cores compute: threads take what is left without the workers' memory
    # One core for the process that drives the devices; more workers than rows loaded ahead would idle.
    return min(limits.cores() - 1, cfg.prefetch * host_batch)


def _index(element: Any) -> int:
    """That of the video: `element` is it, or an (epoch, index, repeat)."""
    return element[1] if isinstance(element, tuple) else element


class _Threads(Iterator[Any]):
    """Batches of `order` from `first_row` on, loaded by threads of this process."""

    def __init__(self, order: Order, load: Callable[[Any], Row], cfg: config.Data, first_row: int):
        host_batch = len(order.rows)
        ahead = max(cfg.threads, cfg.prefetch * host_batch)
        # Single rows, not batches, are spread over threads, and over workers: any number keeps their order.
        rows = grain.MapDataset.source(order).map(load).slice(slice(first_row, len(order)))
        loaded = rows.to_iter_dataset(grain.ReadOptions(cfg.threads, ahead))
        self._batches = iter(loaded.batch(host_batch, drop_remainder=True, batch_fn=_stack))

    def __next__(self) -> Any:
        return next(self._batches)

    def close(self) -> None:
        self._batches.close()


class _Workers(Iterator[Any]):
    """Batches of `order` from `first_row` on, loaded by processes into memory that they share with this one.

    Grain would make, map and clear new memory for each row.
    """

    def __init__(
        self,
        order: Order,
        load: Callable[[Any], Row],
        cfg: config.Data,
        shape: tuple[int, ...],
        first_row: int,
        workers: int,
    ):
        self._order, self._host_batch, self._taken = order, len(order.rows), first_row
        ahead = max(cfg.prefetch * self._host_batch, workers * cfg.threads)
        self._slots = Slots(self._host_batch + ahead, shape)
        self._slots.release(first_row)
        self._load = Sent(load)
        if not flags.FLAGS.is_parsed():  # Grain reads its own, also in programs that use no absl flags
            flags.FLAGS.mark_as_parsed()
        rows = (
            grain.MapDataset.source(order)
            .map_with_index(functools.partial(_load_into, self._slots, self._load))
            .slice(slice(first_row, len(order)))
        )
        # Workers are spawned, never forked: a fork of a process that runs JAX may hang. The slots are what
        # bounds the rows that are loaded ahead.
        loaded = rows.to_iter_dataset(grain.ReadOptions(cfg.threads, cfg.threads)).mp_prefetch(
            grain.MultiprocessingOptions(workers, per_worker_buffer_size=ahead),
            worker_init_fn=_start_worker,
        )
        filled = loaded.map(functools.partial(_with_video, self._slots))
        self._batches = iter(filled.batch(self._host_batch, drop_remainder=True, batch_fn=_stack))
        self._watch = _Watch(self._slots)
        # A program may end, or drop this, without closing it: Grain then waits for the workers.
        self._finalizer = util.Finalize(
            self, _close_or_end, (weakref.ref(self), self._watch), exitpriority=10
        )
        self._watch.start()

    def __next__(self) -> Any:
        try:
            batch = next(self._batches)  # a copy of the slots, see `_stack`
        except RuntimeError:
            if self._watch.stuck is None:
                raise
            raise LoadingError(
                f"loading the video of index {_index(self._order[self._watch.stuck])} did not come to an end "
                f"in {_ROW_SECONDS} s: the decoder hangs, or the storage"
            ) from None
        self._taken += self._host_batch
        self._slots.release(self._taken)
        return batch

    def close(self) -> None:
        self._finalizer.cancel()
        # Every worker ends after the row that it is at, or is killed there.
        self._watch.end()
        self._watch.join()
        kill = threading.Timer(_LAST_ROW_SECONDS, self._watch.kill)
        kill.start()
        try:
            self._batches.close()
        finally:
            kill.cancel()
            kill.join()
            self._batches = iter(())  # Grain's do not end well when the interpreter does
            self._slots.close()
            self._load.close()


def _close_or_end(workers: "weakref.ref[_Workers]", watch: "_Watch") -> None:
    found = workers()
    if found is None:  # then Grain closes its own
        watch.end()
    else:
        found.close()


class _Watch(threading.Thread):
    """Looks every second at which rows the workers are, and kills them when one comes to no end."""

    def __init__(self, slots: Slots):
        super().__init__(daemon=True, name="watch-workers")
        self._slots = slots
        self._ended = threading.Event()
        self.stuck: int | None = None  # the row that came to no end

    def run(self) -> None:
        seconds: Counter[int] = Counter()
        while not self._ended.wait(1.0):
            # Counted, not read from a clock: where this process is stopped, its workers mostly are too.
            seconds = Counter({row: seconds[row] + 1 for row in self._rows()})
            if late := [row for row, count in seconds.items() if count >= _ROW_SECONDS]:
                self.stuck = min(late)
                self.kill()
                return

    def end(self) -> None:
        """Lets the workers end, and this thread."""
        self._slots.stop()
        self._ended.set()

    def kill(self) -> None:
        for process in set(self._rows().values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def _rows(self) -> dict[int, int]:
        """The workers, by the row that they are at. One that died still stands in the slots."""
        alive = {process.pid for process in multiprocessing.active_children()}
        return {row: process for row, process in self._slots.fillers().items() if process in alive}


def _checked(load: Callable[[Any], Row], shape: tuple[int, ...], element: Any) -> Row:
    """Row `element`. What `load` raises arrives where batches are asked for."""
    try:
        row = load(element)
    except Exception as error:  # whatever a decoder of somebody else's raises
        if _can_be_sent(error):
            raise
        raise RuntimeError(f"loading a row: {type(error).__name__}: {error}") from error
    video = row["video"]
    if video.shape != shape or video.dtype != np.uint8:
        raise ValueError(f"a row's video is {video.dtype} {video.shape}: uint8 {shape} is what it should be")
    return row


def _can_be_sent(error: Exception) -> bool:
    """Whether it would arrive from a worker as it is, and not end the iteration."""
    try:
        alike = type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # whatever a class of somebody else's raises
        return False
    return alike and not isinstance(error, StopIteration)


def _stack(rows: Sequence[Row]) -> Any:
    """A batch. Always a copy: Grain's own is a view where there is one row."""
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _load_into(slots: Slots, load: Callable[[Any], Row], k: int, element: Any) -> Row:
    """In a worker: row k, with `video` in its slot and k in the place of it."""
    with slots.filling(k) as video:
        if video is None:  # nobody will look at it
            return {}
        row = load(element)
        video[...] = row["video"]
    return row | {"video": k}


def _with_video(slots: Slots, row: Row) -> Row:
    return row | {"video": slots[row["video"]]}


def _start_worker(*_: int) -> None:
    # Ctrl-C and SIGHUP go to all processes of a terminal, a scheduler's SIGTERM to all of a job: the run
    # answers them.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _end_with_parent()
    _keep_freed_memory()


def _end_with_parent() -> None:
    """In a worker: ends it when the process that started it is gone, which Grain's would outlive for ever."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="end-with-parent").start()


def _keep_freed_memory() -> None:
    """In a worker: lets glibc keep what a row's arrays took for the next row's.

    It gives back to the system, which has to clear it for the next row, what is over twice the largest block
    ever freed (mallopt(3), on M_MMAP_THRESHOLD). So one large block is freed here.
    """
    np.empty(_MALLOC_MAX, np.uint8)
