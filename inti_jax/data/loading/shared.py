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
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
from jaxtyping import UInt8

# File descriptors that a `Memory` takes: its own, and that of its mapping.
FILES = 2

# Seconds between two looks at whether there is a task.
_POLL_SECONDS = 0.005
# Bytes before the arrays of slots, for whether they are still wanted: what keeps the arrays aligned.
_HEADER = 64


class Place(NamedTuple):
    """Where another process finds a Memory: whose it is, its descriptor there, and its name as a number."""

    process: int
    descriptor: int
    name: int


class Memory:
    """So many bytes, at first 0. Another process can open them by `place` until they are closed here."""

    def __init__(self, size: int):
        name = uuid.uuid4()
        fd = os.memfd_create(_file_name(name.int))
        self._close = weakref.finalize(self, os.close, fd)
        os.ftruncate(fd, size)
        self.place = Place(os.getpid(), fd, name.int)
        self.content = mmap.mmap(fd, size)

    def close(self) -> None:
        """Give the memory back, whoever still refers to it: it reads as zeros from here on."""
        if self._close.alive:
            self.content.madvise(mmap.MADV_REMOVE)
            self._close()


def _file_name(name: int) -> str:
    return f"inti_jax-{name:032x}"


def _opened(place: Place) -> mmap.mmap:
    """Map another process's Memory. Raises FileNotFoundError where it is closed."""
    path = f"/proc/{place.process}/fd/{place.descriptor}"
    fd = os.open(path, os.O_RDWR)
    try:
        # The number may have been given to another file since.
        if not Path(f"/proc/self/fd/{fd}").readlink().name.startswith(f"memfd:{_file_name(place.name)}"):
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
        content = cloudpickle.dumps(function)
        self._memory = Memory(len(content))
        self._memory.content[:] = content
        self.place = self._memory.place

    def close(self) -> None:
        self._memory.close()


def received(place: Place) -> Callable[..., Any]:
    """Load the function of a `Sent`, in another process. Raises FileNotFoundError where it is closed."""
    return cloudpickle.loads(_opened(place))  # what `Sent` wrote, in the process that started this one


class Slots:
    """Places for arrays of one shape and uint8, which one process makes and reads, and others fill.

    Memory is so taken from the system once, and not anew for each array.
    """

    def __init__(self, count: int, shape: tuple[int, ...]):
        self._memory = Memory(_HEADER + count * math.prod(shape))
        self._map(self._memory.content, count, shape)

    def _map(self, content: mmap.mmap, count: int, shape: tuple[int, ...]) -> None:
        self.count, self._shape = count, shape
        self._unwanted = np.frombuffer(content, np.int64, 1)
        self._arrays = np.frombuffer(content, np.uint8, offset=_HEADER).reshape(count, *shape)

    def __getitem__(self, slot: int) -> UInt8[np.ndarray, "..."]:
        return self._arrays[slot]

    @property
    def wanted(self) -> bool:
        return not self._unwanted[0]

    def stop(self) -> None:
        """Tell who fills slots that nobody will look at them."""
        self._unwanted[0] = True

    def close(self) -> None:
        self._memory.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._memory.place, self.count, self._shape)


def _reopened(place: Place, count: int, shape: tuple[int, ...]) -> Slots:
    slots = Slots.__new__(Slots)
    slots._map(_opened(place), count, shape)
    return slots


class Task(NamedTuple):
    """One thing for a worker to do: `number` of the work that `work` holds, into a slot."""

    work: Place
    number: int
    slot: int


class Desk:
    """Where one process puts tasks, the k-th as number k, and workers wait for those that are theirs.

    A task's place is free for another once the task is done, at most `count` are there at a time.
    """

    def __init__(self, count: int):
        self._memory = Memory(8 * (1 + count * _TASK_FIELDS))
        self._map(self._memory.content, count)

    def _map(self, content: mmap.mmap, count: int) -> None:
        self.count = count
        self._stopped = np.frombuffer(content, np.int64, 1)
        self._tasks = np.frombuffer(content, np.int64, offset=8).reshape(count, _TASK_FIELDS)

    def put(self, k: int, task: Task) -> None:
        """Hand out task k, whose place is free."""
        process, descriptor, name = task.work
        high, low = name >> 64, name & (2**64 - 1)
        fields = np.array(
            [
                k + 1,
                process,
                descriptor,
                *np.array([high, low], np.uint64).view(np.int64),
                task.number,
                task.slot,
            ]
        )
        self._tasks[k % self.count, :_CHECK] = fields
        self._tasks[k % self.count, _CHECK] = np.bitwise_xor.reduce(fields)

    def wait(self, k: int) -> Task | None:
        """In a worker: wait for task k, and give it; None after `stop`."""
        place = self._tasks[k % self.count]
        while not self._stopped[0] and not _is_whole(place, k):
            time.sleep(_POLL_SECONDS)
        if self._stopped[0]:
            return None
        _, process, descriptor, high, low, number, slot = place[:_CHECK].tolist()
        name = (high % 2**64 << 64) | low % 2**64
        return Task(Place(process, descriptor, name), number, slot)

    @contextmanager
    def doing(self, k: int) -> Iterator[None]:
        """Say within it that this process is at task k."""
        place = self._tasks[k % self.count]
        place[_WORKER] = os.getpid()
        try:
            yield
        finally:
            place[_WORKER] = 0

    def workers(self) -> dict[int, int]:
        """The processes at work, by the task that each is at."""
        taken = self._tasks[self._tasks[:, _WORKER] != 0].tolist()
        return {fields[0] - 1: fields[_WORKER] for fields in taken}

    @property
    def stopped(self) -> bool:
        return bool(self._stopped[0])

    def stop(self) -> None:
        """No task more is to be done: who waits for one does so no longer."""
        self._stopped[0] = True

    def close(self) -> None:
        self._memory.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _desk, (self._memory.place, self.count)


# A task's fields on the desk, all of 8 bytes: k + 1, five for what it is, the check over these, and the
# process that does it.
_CHECK, _WORKER, _TASK_FIELDS = 7, 8, 9


def _is_whole(place: np.ndarray, k: int) -> bool:
    """Whether task k is there. Other processors may see the fields change in any order."""
    return bool(place[0] == k + 1 and np.bitwise_xor.reduce(place[:_CHECK]) == place[_CHECK])


def _desk(place: Place, count: int) -> Desk:
    desk = Desk.__new__(Desk)
    desk._map(_opened(place), count)
    return desk
