"""Represent arrays that are read on demand, so that a whole model is never in memory at once."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array in a file, or one made from such arrays. Each call of `read` reads it anew."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


def held(array: np.ndarray) -> LazyArray:
    """Wrap an array that is in memory already."""
    return LazyArray(array.shape, array.dtype, lambda: array)
