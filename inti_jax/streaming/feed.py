"""Read a source beside the model, in bounded memory, and run a stream on what comes."""

import collections
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from inti_jax.errors import UserError
from inti_jax.streaming.engine import Stream
from inti_jax.streaming.pacing import ModelFrame
from inti_jax.streaming.sources import Frame, Source

log = logging.getLogger("inti_jax")

_SAY_SECONDS = 60.0  # between lines about dropped frames


class Feed:
    """The model's frames of a source, which a thread reads ahead of the model.

    At most `capacity` of them wait. Then the thread waits too or, with `drops`, all that wait are dropped,
    and the next frame does not follow on the one before. So the model is never further behind than
    `capacity` frames, and what it sees between two drops is whole.
    """

    def __init__(
        self,
        source: Source,
        choose: Callable[[Iterable[Frame]], Iterator[ModelFrame]],
        capacity: int,
        *,
        drops: bool = False,
        timeout: float | None = None,
    ):
        """Start to read. `choose` takes the model's frames out of the source's.

        `timeout` are the seconds without a frame of the source after which it counts as stalled.
        """
        self.name = source.name
        self.dropped = 0  # frames of the model
        self.end = 0.0  # seconds at which the last frame so far ends
        self._capacity, self._drops, self._timeout = capacity, drops, timeout
        self._waiting: collections.deque[ModelFrame] = collections.deque()
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._ended = self._closed = self._lost = False
        self._alive = time.monotonic()
        # It may hang in a read for ever, which must not keep the process.
        threading.Thread(target=self._read, args=(source, choose), name="source", daemon=True).start()

    def __iter__(self) -> Iterator[ModelFrame]:
        """Yield the frames as they come. Raises UserError where the source fails or stalls."""
        while True:
            with self._changed:
                while not self._waiting and not self._ended:
                    self._wait()
                if not self._waiting:
                    if self._failure is not None:
                        raise self._failure
                    return
                frame = self._waiting.popleft()
                self._changed.notify_all()
            yield frame

    def close(self) -> None:
        """Stop reading."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _wait(self) -> None:
        """Wait for a frame or the end."""
        if self._timeout is None:
            self._changed.wait()
            return
        left = self._alive + self._timeout - time.monotonic()
        if left <= 0:
            raise UserError(f"{self.name} stalled: no frame came for {self._timeout:g} s (--timeout)")
        self._changed.wait(left)

    def _read(self, source: Source, choose: Callable[[Iterable[Frame]], Iterator[ModelFrame]]) -> None:
        try:
            with source.open() as frames:
                for frame in choose(self._noted(frames)):
                    if not self._put(frame):
                        return
        except BaseException as error:  # raised where the frames are taken
            self._failure = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _noted(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Note that the source is alive, also where none of its frames is one of the model's."""
        before = None
        for frame in frames:
            self._alive = time.monotonic()
            self.end = 2 * frame.seconds - before if before is not None else frame.seconds
            before = frame.seconds
            yield frame

    def _put(self, frame: ModelFrame) -> bool:
        """Add a frame; return False where none is wanted any more."""
        with self._changed:
            if self._drops and len(self._waiting) >= self._capacity:
                self.dropped += len(self._waiting)
                self._waiting.clear()
                self._lost = True
            while len(self._waiting) >= self._capacity and not self._closed:
                self._changed.wait()
            self._alive = time.monotonic()  # the wait was not the source's
            if self._closed:
                return False
            self._waiting.append(frame._replace(follows=frame.follows and not self._lost))
            self._lost = False
            self._changed.notify_all()
        return True


class Answer(NamedTuple):
    """The answer on a window of a source: its first and its last frame by number and time, in seconds."""

    start: int
    end: int
    seconds: tuple[float, float]
    probabilities: Float[np.ndarray, " K"]


def answers(stream: Stream, feed: Feed, *, fill: bool = False) -> Iterator[Answer]:
    """Push the frames of `feed` into `stream`, whose stride is 1; yield what became due, and close the feed.

    The frames' numbers and times are those of the source. With `fill`, a source that ends before the first
    window is full has one answer, for which its last frame is repeated, as in evaluation. It says how many
    frames are dropped.
    """
    window: collections.deque[ModelFrame] = collections.deque(maxlen=stream.frames)
    found = said = 0
    said_at = -_SAY_SECONDS
    with contextlib.closing(feed):
        for frame in feed:
            if not frame.follows:
                stream.skip(0)
                window.clear()
            window.append(frame)
            for answer in _answers(stream, window):
                found += 1
                yield answer
            if feed.dropped > said and time.monotonic() - said_at > _SAY_SECONDS:
                _say_dropped(feed)
                said, said_at = feed.dropped, time.monotonic()
    if feed.dropped > said:
        _say_dropped(feed)
    while fill and window and not found:
        window.append(window[-1])
        for answer in _answers(stream, window):
            found += 1
            yield answer


def _answers(stream: Stream, window: collections.deque[ModelFrame]) -> Iterator[Answer]:
    """Push the last frame of `window`."""
    for found in stream.push(window[-1].pixels[None]):
        first, last = window[0], window[-1]
        seconds = first.seconds, last.seconds
        yield Answer(first.number, last.number + 1, seconds, found.probabilities)


def _say_dropped(feed: Feed) -> None:
    log.warning(
        "the model is slower than %s: %d of its frames were dropped so far, and the next window starts "
        "behind them",
        feed.name,
        feed.dropped,
    )
