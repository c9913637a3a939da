"""Load rows as batches, in order, on threads of this process or in worker processes."""

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
    """The batches of `order` from number `first` on, each row loaded by `load`.

    A row has `video`, a uint8 array of `shape`, scalars, and small arrays. If `workers` are given, they load
    the rows, and are left running. Otherwise the first batch starts processes or threads that only these
    batches use. Raises LoadingError, and anything that `load` raises. `close` may be called from any thread;
    a thread that waits for a batch then gets LoadingError.
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
        self._changing = threading.Lock()  # guards the attributes below
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
        """Stop the loading, from any thread; the end of the batches does so as well."""
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
    """Make the worker processes for a host that loads `host_batch` videos a batch.

    Returns None where threads are to load. The processes start with the first batch, and the caller closes
    them. Raises UserError where the limit of open files does not allow as many as `cfg` says.
    """
    if count := worker_count(cfg, host_batch):
        count = affordable(count, exactly=cfg.workers >= 0)
    return Workers(count, cfg.threads) if count else None


def worker_count(cfg: config.Data, host_batch: int) -> int:
    """Count the worker processes of a host that loads `host_batch` videos a batch.

    It is `cfg.workers`. Where that is -1, it is a number that suits the host.
    """
    if cfg.workers >= 0:
        return cfg.workers
    if jax.default_backend() == "cpu":
        return 0  # the cores compute: threads take what is left, and need no workers' memory
    # One core is left to the process that drives the devices. More workers than rows ahead would idle.
    return min(limits.cores() - 1, cfg.prefetch * host_batch)


class _Threads(Iterator[Any]):
    """The batches of `order` from number `first` on, loaded by threads of this process."""

    def __init__(self, order: Order, load: Callable[[Any], Row], cfg: config.Data, first: int):
        host_batch = len(order.rows)
        ahead = max(cfg.threads, cfg.prefetch * host_batch)
        # Threads load single rows, not batches. The rows keep their order, whatever the number of threads.
        rows = grain.MapDataset.source(order).map(load).slice(slice(first * host_batch, len(order)))
        loaded = rows.to_iter_dataset(grain.ReadOptions(cfg.threads, ahead))
        self._batches = iter(loaded.batch(host_batch, drop_remainder=True, batch_fn=stacked))
        self._using = threading.Lock()  # guards Grain's iterator, which one thread may use at a time
        self._closed = False

    def __next__(self) -> Any:
        with self._using:
            if self._closed:
                raise LoadingError("the batches are closed")
            return next(self._batches)

    def close(self) -> None:
        """Stop the threads, after the batch that another thread waits for."""
        self._closed = True
        with self._using:
            self._batches.close()
