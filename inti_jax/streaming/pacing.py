"""Choose the model's frames among those of a source: each n-th one, or so many a second."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from inti_jax.data.augmentation import augment
from inti_jax.streaming.sources import Frame

_CLOCK = 1e-3  # seconds: containers round times to milliseconds


class ModelFrame(NamedTuple):
    """A frame as the model takes it.

    `number` is its place in the source, from 0. `follows` is False where it does not follow on the frame of
    the model before it, so that no window may have both.
    """

    number: int
    seconds: float
    pixels: UInt8[np.ndarray, "h w 3"]
    follows: bool = True


def by_stride(frames: Iterable[Frame], stride: int, size: tuple[int, int]) -> Iterator[ModelFrame]:
    """Take each `stride`-th frame, resized and cropped to `size`; after lost ones take the next at once."""
    left = 0
    for number, frame in enumerate(frames):
        if not frame.follows:
            left = 0
        if left == 0:
            yield _cropped(number, frame.seconds, frame, size, frame.follows)
            left = stride
        left -= 1


def by_rate(frames: Iterable[Frame], rate: float, size: tuple[int, int], most: int) -> Iterator[ModelFrame]:
    """Take `rate` frames a second, resized and cropped to `size`: those that are shown at these times.

    A frame that is shown for longer is taken again, but `most` times at most: a longer hole, times that run
    backwards, and lost frames start the times anew.
    """
    before: tuple[int, Frame] | None = None
    start, taken = 0.0, 0  # the time from which `taken` frames were taken
    for number, frame in enumerate(frames):
        hole = before is not None and (frame.seconds - start) * rate - taken > most
        follows = frame.follows and not hole
        if before is None or not follows or frame.seconds < before[1].seconds - _CLOCK:
            follows = before is None
            start, taken = frame.seconds, 0
        else:
            while start + taken / rate < frame.seconds - _CLOCK:
                yield _cropped(before[0], start + taken / rate, before[1], size)
                taken += 1
        if start + taken / rate <= frame.seconds + _CLOCK:
            yield _cropped(number, frame.seconds, frame, size, follows)
            taken += 1
        before = number, frame


def _cropped(
    number: int, seconds: float, frame: Frame, size: tuple[int, int], follows: bool = True
) -> ModelFrame:
    pixels = augment.test_views(frame.rgb()[None], size, crops=1)[0, 0]
    return ModelFrame(number, seconds, pixels, follows)
