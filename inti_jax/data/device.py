"""Batches onto the devices before they are asked for."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

DeviceBatch = dict[str, jax.Array]


class DevicePrefetch(Iterator[DeviceBatch]):
    """Keeps `ahead` batches on the devices, placed by a thread of its own. Close it when done."""

    def __init__(
        self,
        batches: Iterator[Mapping[str, Any]],
        place: Callable[[Mapping[str, Any]], DeviceBatch],
        *,
        ahead: int,
    ):
        self._batches, self._place = batches, place
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device-prefetch")
        self._coming: deque[Future[DeviceBatch]] = deque()
        for _ in range(ahead):
            self._request()

    def __next__(self) -> DeviceBatch:
        batch = self._coming.popleft().result()  # raises what the loading raised, StopIteration too
        self._request()
        return batch

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _request(self) -> None:
        self._coming.append(self._thread.submit(lambda: self._place(next(self._batches))))
