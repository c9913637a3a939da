"""Define the rows that make up a batch: their order, their checks, and their stacking."""

import functools
import pickle
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

# A row has `video`, a uint8 array, scalars, and small arrays of one shape.
Row = dict[str, Any]


@runtime_checkable
class Order(Protocol):
    """The elements to load, batch by batch; `rows` of each batch are this host's."""

    rows: Sequence[int]

    def __len__(self) -> int: ...

    def __getitem__(self, k: int) -> Any: ...


def checked(load: Callable[[Any], Row], shape: tuple[int, ...]) -> Callable[[Any], Row]:
    """Wrap `load` to raise ValueError for a row whose video is not uint8 of `shape`.

    The wrapper also replaces errors that could not be sent to the process that asks for batches, see
    `sendable`.
    """
    return functools.partial(_checked, load, shape)


def _checked(load: Callable[[Any], Row], shape: tuple[int, ...], element: Any) -> Row:
    try:
        row = load(element)
    except Exception as error:  # whatever a third party's decoder raises
        sent = sendable(error)
        if sent is error:
            raise
        raise sent from error
    video = row["video"]
    if video.shape != shape or video.dtype != np.uint8:
        raise ValueError(f"a row's video is {video.dtype} {video.shape}, not uint8 {shape}")
    return row


def sendable(error: Exception) -> Exception:
    """Return `error`, or a RuntimeError that says the same if `error` cannot be sent from a worker.

    It cannot if it does not survive pickling, or if it is StopIteration.
    """
    try:
        alike = type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # whatever a third party's class raises
        alike = False
    if alike and not isinstance(error, StopIteration):  # which would end the iteration
        return error
    return RuntimeError(f"loading a row: {type(error).__name__}: {error}")


def stacked(rows: Sequence[Row]) -> Any:
    """Stack rows as a batch, which is always a copy.

    Grain's own stacking gives a view where there is one row.
    """
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def index_of(element: Any) -> int:
    """Return the video's index in an element of an order: an index, or an (epoch, index, repeat)."""
    return element[1] if isinstance(element, tuple) else element
