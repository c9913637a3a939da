"""What a process and its workers share: memory of no name that is reached through the process that made it.

It is gone with the last process that uses it, however that ends, and no limit of /dev/shm applies to it.
Pickling sends where it is and not what is in it.
"""

import math
import mmap
import os
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from jaxtyping import UInt8

# Seconds between two looks at whether a slot is free.
_POLL_SECONDS = 0.005
# Bytes before the arrays: of all, how many elements are done with and whether no more are wanted; and of each
# slot, which process fills it, and with which element.
_HEADER = 16


class Memory:
    """So many bytes, at first 0. Another process can open them by `place` until they are closed here."""

    def __init__(self, size: int):
        name = f"inti_jax-{uuid.uuid4().hex}"
        fd = os.memfd_create(name)
        self._close = weakref.finalize(self, os.close, fd)
        os.ftruncate(fd, size)
        self.place = f"/proc/{os.getpid()}/fd/{fd}", name
        self.content = mmap.mmap(fd, size)

    def close(self) -> None:
        """Gives the memory back, whoever still refers to it: it reads as zeros from here on."""
        self.content.madvise(mmap.MADV_REMOVE)
        self._close()


def _opened(place: tuple[str, str]) -> mmap.mmap:
    path, name = place
    fd = os.open(path, os.O_RDWR)
    try:
        # The number may have been given to another file since.
        if not Path(f"/proc/self/fd/{fd}").readlink().name.startswith(f"memfd:{name}"):
            raise FileNotFoundError(f"{path} is closed")
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
        return _received, (self._memory.place,)


def _received(place: tuple[str, str]) -> Callable[..., Any]:
    return cloudpickle.loads(_opened(place))  # what `Sent` wrote, in the process that started this one


class Slots:
    """Places for a sequence's arrays: that of element k is slot k % count, when k - count is done with.

    One process makes them, says in order which are done with, and closes them; others fill them. So memory is
    bounded whoever is ahead, and is taken from the system once and not anew for each element.
    """

    def __init__(self, count: int, shape: tuple[int, ...]):
        """`shape` of each array, which is of uint8."""
        self._memory = Memory(_HEADER * (count + 1) + count * math.prod(shape))
        self._map(self._memory.content, count, shape)

    def _map(self, content: mmap.mmap, count: int, shape: tuple[int, ...]) -> None:
        self._count, self._shape = count, shape
        header = np.frombuffer(content, np.int64, 2 * (count + 1)).reshape(count + 1, 2)
        self._all, self._fillers = header[0], header[1:]
        self._arrays = np.frombuffer(content, np.uint8, offset=header.nbytes).reshape(count, *shape)

    def __getitem__(self, k: int) -> UInt8[np.ndarray, "..."]:
        return self._arrays[k % self._count]

    @contextmanager
    def filling(self, k: int) -> Iterator[UInt8[np.ndarray, "..."] | None]:
        """Waits until the slot of element k is free, and gives it; None after `stop`."""
        while not self._all[1] and k >= self._all[0] + self._count:
            time.sleep(_POLL_SECONDS)
        if self._all[1]:
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
        self._all[0] = elements

    def stop(self) -> None:
        """No element more is wanted: who waits does so no longer."""
        self._all[1] = True

    def close(self) -> None:
        self._memory.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._memory.place, self._count, self._shape)


def _reopened(place: tuple[str, str], count: int, shape: tuple[int, ...]) -> Slots:
    slots = Slots.__new__(Slots)
    slots._map(_opened(place), count, shape)
    return slots
