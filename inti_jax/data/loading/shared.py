"""Share anonymous memory between a process and its workers.

Other processes open the memory through the process that made it. It is freed with the last process that uses
it, however that ends, and the limit of /dev/shm does not apply to it. Pickling sends its place, not its
content.
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

# File descriptors that a `Memory` takes: its own and that of its mapping.
FILES = 2

# Seconds between two polls for a task.
_POLL_SECONDS = 0.005
# Bytes before the arrays of `Slots`. They hold the flag that `stop` sets, and keep the arrays aligned.
_HEADER = 64


class Place(NamedTuple):
    """The place of a Memory, by which another process opens it.

    It is the process that made it, the descriptor in that process, and the memory's name as a number.
    """

    process: int
    descriptor: int
    name: int


class Memory:
    """Shared memory of `size` bytes, at first 0.

    Another process can open it by `place` until it is closed in this one.
    """

    def __init__(self, size: int):
        name = uuid.uuid4()
        fd = os.memfd_create(_file_name(name.int))
        self._close = weakref.finalize(self, os.close, fd)
        os.ftruncate(fd, size)
        self.place = Place(os.getpid(), fd, name.int)
        self.content = mmap.mmap(fd, size)

    def close(self) -> None:
        """Free the memory, even where something still refers to it: from then on it reads as zeros."""
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
        # The descriptor may belong to another file by now.
        if not Path(f"/proc/self/fd/{fd}").readlink().name.startswith(f"memfd:{_file_name(place.name)}"):
            raise FileNotFoundError(f"{path} is closed")
        return mmap.mmap(fd, 0)
    finally:
        os.close(fd)


class Sent:
    """A function that workers copy from shared memory.

    Objects that are pickled for a starting process go through a pipe. More than 64 kB block there until the
    process reads them: for ever, if it died.
    """

    def __init__(self, function: Callable[..., Any]):
        content = cloudpickle.dumps(function)
        self._memory = Memory(len(content))
        self._memory.content[:] = content
        self.place = self._memory.place

    def close(self) -> None:
        """Free the memory; the function can no longer be received."""
        self._memory.close()


def received(place: Place) -> Callable[..., Any]:
    """Load the function of a `Sent` in another process. Raises FileNotFoundError where it is closed."""
    return cloudpickle.loads(_opened(place))  # `Sent` wrote it, in the process that started this one


class Slots:
    """Shared uint8 arrays of one shape, which one process makes and reads, and others fill.

    So memory is taken from the system once, not anew for each array.
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
        """True until `stop` is called, in any process."""
        return not self._unwanted[0]

    def stop(self) -> None:
        """Tell the processes that fill slots that nobody will read them."""
        self._unwanted[0] = True

    def close(self) -> None:
        """Free the memory of the arrays."""
        self._memory.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._memory.place, self.count, self._shape)


def _reopened(place: Place, count: int, shape: tuple[int, ...]) -> Slots:
    slots = Slots.__new__(Slots)
    slots._map(_opened(place), count, shape)
    return slots


class Task(NamedTuple):
    """A task for a worker: do `number` of the work at `work`, and put the result into a slot."""

    work: Place
    number: int
    slot: int


class Desk:
    """A ring of tasks in shared memory, into which one process puts them and from which workers take them.

    Tasks are numbered in order, and a worker waits for the numbers that are its own. A task's place is free
    for another once the task is done, so there are at most `count` tasks at a time.
    """

    def __init__(self, count: int):
        self._memory = Memory(8 * (1 + count * _TASK_FIELDS))
        self._map(self._memory.content, count)

    def _map(self, content: mmap.mmap, count: int) -> None:
        self.count = count
        self._stopped = np.frombuffer(content, np.int64, 1)
        self._tasks = np.frombuffer(content, np.int64, offset=8).reshape(count, _TASK_FIELDS)

    def put(self, k: int, task: Task) -> None:
        """Put task k on the desk; its place must be free."""
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
        """Wait for task k in a worker and return it, or None after `stop`."""
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
        """Record in the context that this process is at task k."""
        place = self._tasks[k % self.count]
        place[_WORKER] = os.getpid()
        try:
            yield
        finally:
            place[_WORKER] = 0

    def workers(self) -> dict[int, int]:
        """Return the ids of the processes at work, by the task that each is at."""
        taken = self._tasks[self._tasks[:, _WORKER] != 0].tolist()
        return {fields[0] - 1: fields[_WORKER] for fields in taken}

    @property
    def stopped(self) -> bool:
        """True once `stop` was called, in any process."""
        return bool(self._stopped[0])

    def stop(self) -> None:
        """End every wait for a task; no more tasks are to be done."""
        self._stopped[0] = True

    def close(self) -> None:
        """Free the memory of the tasks."""
        self._memory.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _desk, (self._memory.place, self.count)


# A task on the desk has fields of 8 bytes each: k + 1, six for the Task itself, the check over these seven,
# and the id of the process that does it.
_CHECK, _WORKER, _TASK_FIELDS = 7, 8, 9


def _is_whole(place: np.ndarray, k: int) -> bool:
    """Check that task k is there in full: other processors may see its fields change in any order."""
    return bool(place[0] == k + 1 and np.bitwise_xor.reduce(place[:_CHECK]) == place[_CHECK])


def _desk(place: Place, count: int) -> Desk:
    desk = Desk.__new__(Desk)
    desk._map(_opened(place), count)
    return desk
