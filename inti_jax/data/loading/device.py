"""Prefetch batches onto the devices."""

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import jax

DeviceBatch = dict[str, jax.Array]


@runtime_checkable
class Closable(Protocol):
    """An iterator over batches that any thread can close, also while another waits for a batch."""

    def __next__(self) -> Mapping[str, Any]: ...

    def close(self) -> None:
        """End the iteration, from any thread."""
        ...


class DevicePrefetch:
    """Keep `ahead` batches on the devices, placed by a thread of its own.

    Closing it closes `batches`.
    """

    def __init__(
        self,
        batches: Closable,
        place: Callable[[Mapping[str, Any]], DeviceBatch],
        *,
        ahead: int,
    ):
        self._batches, self._place = batches, place
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device-prefetch")
        self._coming: deque[Future[DeviceBatch]] = deque()
        for _ in range(ahead):
            self._request()

    def __iter__(self) -> "DevicePrefetch":
        return self

    def __next__(self) -> DeviceBatch:
        batch = self._coming.popleft().result()  # raises what loading raised, StopIteration included
        self._request()
        return batch

    def close(self) -> None:
        """Stop the prefetching and close `batches`."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._batches.close()  # the thread may be waiting for a batch
        self._thread.shutdown()

    def _request(self) -> None:
        self._coming.append(self._thread.submit(lambda: self._place(next(self._batches))))
