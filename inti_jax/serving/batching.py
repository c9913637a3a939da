"""Run the model on what several requests bring, as one batch, in a thread of its own."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
from jaxtyping import Float, UInt8

from inti_jax.serving.metrics import Metrics

log = logging.getLogger("inti_jax")

Values = Callable[[UInt8[np.ndarray, "b V T H W 3"]], Float[np.ndarray, "b V K"]]

_Waiting = tuple[np.ndarray, "Future[np.ndarray]"]


def sizes(most: int) -> list[int]:
    """Return the sizes of batches, each of which is a compiled program: powers of two, and `most`."""
    return [*(size for size in (2**n for n in range(most.bit_length())) if size < most), most]


class Batcher:
    """A thread that gathers clips into batches of at most `most`, and computes their values.

    It waits for more clips for `seconds` after the first one. While it computes, the next ones gather.
    """

    def __init__(self, values: Values, most: int, seconds: float, metrics: Metrics):
        """Start the thread."""
        self._values, self._sizes, self._seconds, self._metrics = values, sizes(most), seconds, metrics
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._since: float | None = None
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    async def __call__(self, views: UInt8[np.ndarray, "V T H W 3"]) -> Float[np.ndarray, "V K"]:
        """Return the values of a video's views. Passes on what the model raises."""
        future: Future[np.ndarray] = Future()
        self._waiting.put((views, future))
        return await asyncio.wrap_future(future)

    @property
    def busy_seconds(self) -> float:
        """The seconds for which the model has worked on its present batch; 0 where it has none."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def close(self) -> None:
        """End the thread after its present batch."""
        self._waiting.put(None)

    def _work(self) -> None:
        while (batch := self._gather()) is not None:
            # A request that has ended no longer waits for its values.
            left = [(views, future) for views, future in batch if future.set_running_or_notify_cancel()]
            if left:
                self._since = time.monotonic()
                try:
                    self._compute(left)
                finally:
                    self._since = None

    def _gather(self) -> list[_Waiting] | None:
        """Wait for a batch; return None at the end."""
        first = self._waiting.get()
        if first is None:
            return None
        batch, until = [first], time.monotonic() + self._seconds
        while len(batch) < self._sizes[-1]:
            try:
                # What waits already is taken, also where the time is over.
                another = self._waiting.get(timeout=max(until - time.monotonic(), 0.0))
            except queue.Empty:
                break
            if another is None:
                self._waiting.put(None)
                break
            batch.append(another)
        return batch

    def _compute(self, batch: list[_Waiting]) -> None:
        size = next(size for size in self._sizes if size >= len(batch))
        views = np.stack([views for views, _ in batch] + [batch[0][0]] * (size - len(batch)))
        self._metrics.sizes.observe(len(batch))
        try:
            with self._metrics.computing.time():
                found = self._values(views)
        except Exception as error:  # whatever the devices raise: the next batch may do
            log.exception("the model failed on a batch of %d", len(batch))
            for _, future in batch:
                future.set_exception(error)
            return
        for row, (_, future) in zip(found, batch, strict=False):
            future.set_result(row)
