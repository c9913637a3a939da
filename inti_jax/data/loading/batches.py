"""Rows into batches, in order: by threads of this process, or by worker processes."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax

from inti_jax import config
from inti_jax.data.loading.processes import affordable
from inti_jax.data.loading.rows import Order, Row, checked, stacked
from inti_jax.data.loading.workers import Job, LoadingError, Workers
from inti_jax.host import limits


class Batches(Iterator[Any]):
    """Batches `first` and on of `order`, each row loaded by `load` in threads or worker processes.

    A row has `video`, a uint8 array of `shape`, and scalars. With `workers` it is they that load, which this
    leaves running; else processes or threads of its own, from the first batch on. Raises LoadingError, and
    what `load` raises. `close` may be called from any thread: one that waits for a batch gets LoadingError.
    """

    def __init__(
        self,
        order: Order,
        load: Callable[[Any], Row],
        cfg: config.Data,
        shape: tuple[int, ...],
        first: int = 0,
        workers: Workers | None = None,
    ):
        self._order, self._load, self._cfg, self._shape = order, checked(load, shape), cfg, shape
        self._first, self._workers = first, workers
        self._changing = threading.Lock()  # what is below
        self._loading: _Threads | Job | None = None
        self._resources = contextlib.ExitStack()
        self._closed = self._ended = False

    def __next__(self) -> Any:
        with self._changing:
            if self._ended:
                raise StopIteration
            if self._closed:
                raise LoadingError("the batches are closed")
            if self._loading is None:
                self._loading = self._start()
            loading = self._loading
        try:
            return next(loading)
        except StopIteration:
            self._ended = True
            self.close()
            raise

    def close(self) -> None:
        """End the loading, from any thread. So does the last batch."""
        with self._changing:
            self._closed, self._loading = True, None
            self._resources.close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> "_Threads | Job":
        workers = self._workers
        if workers is None and (workers := worker_pool(self._cfg, len(self._order.rows))):
            self._resources.callback(workers.close)
        if workers is None:
            loading: _Threads | Job = _Threads(self._order, self._load, self._cfg, self._first)
        else:
            loading = workers.open(
                self._order, self._load, self._shape, prefetch=self._cfg.prefetch, first_batch=self._first
            )
        self._resources.callback(loading.close)
        return loading


def worker_pool(cfg: config.Data, host_batch: int) -> Workers | None:
    """Make the worker processes for a host that loads `host_batch` videos a batch; None where threads suit.

    They start with the first batch, and are to be closed. Raises UserError where the limit of open files does
    not allow as many as `cfg` says.
    """
    if count := worker_count(cfg, host_batch):
        count = affordable(count, exactly=cfg.workers >= 0)
    return Workers(count, cfg.threads) if count else None


def worker_count(cfg: config.Data, host_batch: int) -> int:
    """Count the worker processes of a host that loads `host_batch` videos a batch.

    They are `cfg.workers`, or what suits.
    """
    if cfg.workers >= 0:
        return cfg.workers
    if jax.default_backend() == "cpu":
        return 0  # the cores compute: threads take what is left without the workers' memory
    # One core for the process that drives the devices; more workers than rows loaded ahead would idle.
    return min(limits.cores() - 1, cfg.prefetch * host_batch)


class _Threads(Iterator[Any]):
    """Batches `first` and on of `order`, loaded by threads of this process."""

    def __init__(self, order: Order, load: Callable[[Any], Row], cfg: config.Data, first: int):
        host_batch = len(order.rows)
        ahead = max(cfg.threads, cfg.prefetch * host_batch)
        # Single rows, not batches, are spread over threads: any number of them keeps their order.
        rows = grain.MapDataset.source(order).map(load).slice(slice(first * host_batch, len(order)))
        loaded = rows.to_iter_dataset(grain.ReadOptions(cfg.threads, ahead))
        self._batches = iter(loaded.batch(host_batch, drop_remainder=True, batch_fn=stacked))
        self._using = threading.Lock()  # Grain's iterator, which one thread may do at a time
        self._closed = False

    def __next__(self) -> Any:
        with self._using:
            if self._closed:
                raise LoadingError("the batches are closed")
            return next(self._batches)

    def close(self) -> None:
        """End the threads, after the batch that another thread waits for."""
        self._closed = True
        with self._using:
            self._batches.close()
