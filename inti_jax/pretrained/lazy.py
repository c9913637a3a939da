"""Arrays that are read when asked for, so that a whole model is never in memory at once."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array in a file, or made from some; `read` gives it, anew each time."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


def held(array: np.ndarray) -> LazyArray:
    """An array that is in memory already."""
    return LazyArray(array.shape, array.dtype, lambda: array)
