"""Rows, of which batches are made: in which order they are loaded, what one is, and many as one."""

import functools
import pickle
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

# `video`, a uint8 array, and scalars.
Row = dict[str, Any]


@runtime_checkable
class Order(Protocol):
    """What is to be loaded: `rows` of each batch are this host's, batch by batch."""

    rows: Sequence[int]

    def __len__(self) -> int: ...

    def __getitem__(self, k: int) -> Any: ...


def checked(load: Callable[[Any], Row], shape: tuple[int, ...]) -> Callable[[Any], Row]:
    """Wrap `load`, so that a row whose video is not uint8 of `shape` raises ValueError.

    And so that what it raises arrives where batches are asked for, in another process, too.
    """
    return functools.partial(_checked, load, shape)


def _checked(load: Callable[[Any], Row], shape: tuple[int, ...], element: Any) -> Row:
    try:
        row = load(element)
    except Exception as error:  # whatever a decoder of somebody else's raises
        sent = sendable(error)
        if sent is error:
            raise
        raise sent from error
    video = row["video"]
    if video.shape != shape or video.dtype != np.uint8:
        raise ValueError(f"a row's video is {video.dtype} {video.shape}: uint8 {shape} is what it should be")
    return row


def sendable(error: Exception) -> Exception:
    """Give `error`, or one that says the same where it would not arrive from another process as it is."""
    try:
        alike = type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # whatever a class of somebody else's raises
        alike = False
    if alike and not isinstance(error, StopIteration):  # which would end the iteration
        return error
    return RuntimeError(f"loading a row: {type(error).__name__}: {error}")


def stacked(rows: Sequence[Row]) -> Any:
    """Make a batch of rows. Always a copy: Grain's own is a view where there is one row."""
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def index_of(element: Any) -> int:
    """Take the video's index from an order's element: `element` is it, or an (epoch, index, repeat)."""
    return element[1] if isinstance(element, tuple) else element
