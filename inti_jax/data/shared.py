"""What a process and its workers share: memory of no name that is reached through the process that made it.

It is gone with the last process that uses it, however that ends, and no limit of /dev/shm applies to it.
Pickling sends where it is and not what is in it.
"""

import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cloudpickle
import numpy as np
from jaxtyping import UInt8

# Seconds between two looks at whether a slot is free.
_POLL_SECONDS = 0.005
# In the place of how many elements are done with.
_STOPPED = -1


class Memory:
    """So many bytes, at first 0. Another process can open them by `path` until they are closed here."""

    def __init__(self, size: int):
        self._fd = os.memfd_create("inti_jax")
        os.ftruncate(self._fd, size)
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
        self.content = mmap.mmap(self._fd, size)

    def close(self) -> None:
        """Gives the memory back, whoever still refers to it: it reads as zeros from here on."""
        self.content.madvise(mmap.MADV_REMOVE)
        os.close(self._fd)


def _opened(path: str) -> mmap.mmap:
    fd = os.open(path, os.O_RDWR)
    try:
        return mmap.mmap(fd, 0)
    finally:
        os.close(fd)


class Sent:
    """A function that workers get a copy of.

    What is pickled for a process that starts goes through a pipe, and over 64 kB wait for it there, for ever
    if it died.
    """

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        content = cloudpickle.dumps(function)
        self._memory = Memory(len(content))
        self._memory.content[:] = content

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def close(self) -> None:
        self._memory.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self._memory.path,)


def _received(path: str) -> Callable[..., Any]:
    return cloudpickle.loads(_opened(path))  # what `Sent` wrote, in the process that started this one


class Slots:
    """Places for a sequence's arrays: that of element k is slot k % count, when k - count is done with.

    One process makes them, says in order which are done with, and closes them; others fill them. So memory is
    bounded whoever is ahead, and is taken from the system once and not anew for each element.
    """

    def __init__(self, count: int, shape: tuple[int, ...]):
        """`shape` of each array, which is of uint8."""
        self._memory = Memory(_HEADER * (count + 1) + count * int(np.prod(shape)))
        self._map(self._memory.content, count, shape)

    def _map(self, content: mmap.mmap, count: int, shape: tuple[int, ...]) -> None:
        self._count, self._shape = count, shape
        header = np.frombuffer(content, np.int64, 2 * (count + 1)).reshape(count + 1, 2)
        self._released, self._fillers = header[0], header[1:]
        self._arrays = np.frombuffer(content, np.uint8, offset=header.nbytes).reshape(count, *shape)

    def __getitem__(self, k: int) -> UInt8[np.ndarray, "..."]:
        return self._arrays[k % self._count]

    @contextmanager
    def filling(self, k: int) -> Iterator[UInt8[np.ndarray, "..."] | None]:
        """Waits until the slot of element k is free, and gives it; None after `stop`."""
        while (released := self._released[0]) != _STOPPED and k >= released + self._count:
            time.sleep(_POLL_SECONDS)
        if released == _STOPPED:
            yield None
            return
        filler = self._fillers[k % self._count]
        filler[:] = os.getpid(), k
        try:
            yield self[k]
        finally:
            filler[0] = 0

    def fillers(self) -> dict[int, int]:
        """The processes at work, by the element that each fills a slot with."""
        return {int(k): int(process) for process, k in self._fillers if process}

    def release(self, elements: int) -> None:
        """The first so many elements are done with."""
        self._released[0] = elements

    def stop(self) -> None:
        """No element more is wanted: who waits does so no longer."""
        self.release(_STOPPED)

    def close(self) -> None:
        self._memory.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._memory.path, self._count, self._shape)


_HEADER = 16  # bytes: of all, how many are released; of each slot, who fills it with what


def _reopened(path: str, count: int, shape: tuple[int, ...]) -> Slots:
    slots = Slots.__new__(Slots)
    slots._map(_opened(path), count, shape)
    return slots
