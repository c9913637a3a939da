"""Detect the straggler by heartbeats and end the run with its name.

A thread in each process posts to the coordination service how far the process is, as a count of `note`s. All
processes make the same notes in the same order, so the others wait for those with the lowest count. Process 0
reads all posts, judges them, and posts its verdict with its own place. The other processes read and judge
process 0 alone, so the number of reads does not grow with the square of the hosts. A verdict ends every
process, also one that is stuck in a collective.
"""

import contextlib
import dataclasses
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax

from inti_jax import config
from inti_jax.host.command import say

log = logging.getLogger("inti_jax")

_PLACES = "inti_jax/places/"
_POLL_SECONDS = 1.0
# Seconds for which a process that is done hears that the others are too, once process 0 is gone.
_LEAVING_SECONDS = 10.0
# Warn of a stalled process after this share of the time after which it ends the run.
_WARN_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class Place:
    """The progress of a process, as it posts it. `beat` counts posts, `count` counts notes."""

    host: str
    beat: int = 0
    count: int = 0
    doing: str = "starting"
    slow: bool = True
    left: bool = False  # it is done, and waits for the others
    failed: str = ""  # the error that ended it
    verdict: str = ""  # of process 0 alone


class Judge:
    """Names the process that is lost or stalled, from the places seen over time. Times are in seconds."""

    def __init__(self, processes: range, limits: config.Hosts, now: float):
        self._limits = limits
        self._places = {index: Place("?") for index in processes}
        self._beat_at = dict.fromkeys(processes, now)
        self._moved_at = dict.fromkeys(processes, now)

    def see(self, now: float, places: Mapping[int, Place]) -> None:
        """Record the places that were read at the time `now`."""
        for index, place in places.items():
            before = self._places[index]
            if place.beat != before.beat:
                self._beat_at[index] = now
            if (place.count, place.left) != (before.count, before.left):
                self._moved_at[index] = now
            self._places[index] = place

    def verdict(self) -> str | None:
        """Return the verdict that process 0 posted; None where it posted none."""
        return self._places[0].verdict or None

    def failed(self) -> str | None:
        """Describe the first process that posted an error; None where none did."""
        for index, place in self._places.items():
            if place.failed:
                return f"{self._name(index)} failed: {place.failed}"
        return None

    def silent(self, now: float, *, closed: bool = False) -> str | None:
        """Describe a process that has been silent for too long; None where there is none.

        `closed` says that the connection to process 0 broke.
        """
        for index, beat_at in self._beat_at.items():
            if (closed and index == 0) or now - beat_at > self._limits.silent_seconds:
                return (
                    f"{self._name(index)} has been silent since {_clock(now - beat_at)}, when it was at "
                    f"`{self._places[index].doing}`: it was killed or stopped, or its host or network is "
                    "down"
                )
        return None

    def standing(self, now: float) -> str | None:
        """Describe the processes that the others wait for, once no process has moved for too long."""
        behind, limit = self._behind()
        still = now - max(self._moved_at.values())
        if not behind or still <= limit:
            return None
        if len(behind) == len(self._places):
            return (
                f"all processes stand at `{self._places[0].doing}` since {_clock(still)}, so no single one "
                "is to blame: check the devices, the network between hosts, and the storage that all read"
            )
        return f"{self._describe(behind, now)}, and the other processes wait for it"

    def waited_for(self, now: float) -> str | None:
        """Describe the processes that the others wait for, at a fraction of that time, for a warning."""
        behind, limit = self._behind()
        if 0 < len(behind) < len(self._places) and now - max(self._moved_at.values()) > _WARN_SHARE * limit:
            return f"waiting for {self._describe(behind, now)}"
        return None

    def _behind(self) -> tuple[list[int], float]:
        """Return the processes that the others wait for, and the seconds for which none may move.

        Where processes have ended while others go on, those that ended are behind. Else those with the lowest
        count are, which may be all.
        """
        there = {index: place.count for index, place in self._places.items() if not place.left}
        if not there:
            return [], 0.0
        left = [index for index in self._places if index not in there]
        behind = left or [index for index, count in there.items() if count == min(there.values())]
        # Where some have ended, the others may be at work, such as on the report that ends a run.
        slow = left or len(behind) == len(there) or any(self._places[index].slow for index in behind)
        return behind, self._limits.slow_seconds if slow else self._limits.stall_seconds

    def _describe(self, behind: list[int], now: float) -> str:
        first = behind[0]
        place = self._places[first]
        more = f" (and {len(behind) - 1} more)" if len(behind) > 1 else ""
        doing = "it has ended" if place.left else f"it stands at `{place.doing}`"
        return f"{self._name(first)}{more}: {doing} since {_clock(now - self._moved_at[first])}"

    def _name(self, index: int) -> str:
        return f"process {index} on {self._places[index].host}"


class Watch:
    """Posts this process's place, reads those of the others, and ends the process on a verdict."""

    def __init__(self, client: Any, closed: threading.Event, limits: config.Hosts):
        """Start the two threads of the watch.

        `client` is JAX's client of the coordination service. `closed` is set when the connection to it
        breaks.
        """
        self.limits = limits
        self._client, self._closed = client, closed
        self._index = jax.process_index()
        judged = range(jax.process_count()) if self._index == 0 else range(1)
        self._judge = Judge(judged, limits, time.monotonic())
        self._place = Place(socket.gethostname())
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._ending = False  # the main thread is about to end this process with its own error
        self._warned = ""
        # Two threads, since the exchange may hang when process 0 is gone.
        for work in (self._exchange, self._watch):
            threading.Thread(target=work, daemon=True, name="watch").start()

    def note(self, doing: str, *, slow: bool) -> None:
        """Record that this process goes on to `doing`."""
        with self._lock:
            self._place = dataclasses.replace(
                self._place, doing=doing, slow=slow, count=self._place.count + 1
            )

    def leave(self) -> None:
        """Record that this process is done and waits for the others."""
        self._change(left=True)

    def stop(self) -> None:
        """Stop the threads."""
        self._stopped.set()

    def fail(self, reason: str) -> None:
        """Tell the others the error that ends the main thread, and wait until they can have read it."""
        with self._lock:
            self._ending = True
        self.tell_failed(reason)
        time.sleep(3 * _POLL_SECONDS)  # one to post it, one for process 0 to pass it on, one to read it

    def tell_failed(self, reason: str) -> None:
        """Tell the others of an error in another thread of this process.

        The verdict on it ends this process too.
        """
        with self._lock:  # an earlier error is the cause, so it stays
            self._place = dataclasses.replace(self._place, failed=self._place.failed or reason)

    def _change(self, **changes: Any) -> None:
        with self._lock:
            self._place = dataclasses.replace(self._place, **changes)

    def _exchange(self) -> None:
        while not self._stopped.wait(_POLL_SECONDS):
            with self._lock:
                self._place = dataclasses.replace(self._place, beat=self._place.beat + 1)
                place = json.dumps(dataclasses.asdict(self._place))
            # The next round may succeed. If none does, the other thread notices.
            with contextlib.suppress(Exception):
                self._client.key_value_set(f"{_PLACES}{self._index}", place, allow_overwrite=True)
                if self._index == 0:
                    posted = self._client.key_value_dir_get(_PLACES)
                else:
                    posted = [(f"{_PLACES}0", self._client.key_value_try_get(f"{_PLACES}0"))]
                places = {int(key.rpartition("/")[2]): Place(**json.loads(text)) for key, text in posted}
                with self._lock:
                    self._judge.see(time.monotonic(), places)

    def _watch(self) -> None:
        while not self._stopped.wait(_POLL_SECONDS):
            now = time.monotonic()
            try:
                with self._lock:
                    verdict = self._verdict(now)
            except Exception:  # a bug; without a watch the run could hang for ever
                log.exception("checking the other processes failed; trying again")
                continue
            if verdict is not None:
                # Process 0 may be gone because all are done, which this one is about to hear.
                if self._place.left and self._stopped.wait(_LEAVING_SECONDS):
                    return
                self._end(verdict)
                return

    def _verdict(self, now: float) -> str | None:
        judge = self._judge
        if self._index != 0:
            return judge.verdict() or judge.silent(now, closed=self._closed.is_set())
        waiting = judge.waited_for(now)
        if waiting is not None and waiting != self._warned:
            log.warning("%s", waiting)
        self._warned = waiting or ""
        return judge.failed() or judge.silent(now) or judge.standing(now)

    def _end(self, verdict: str) -> None:
        if self._index == 0:
            self._change(verdict=verdict)
            time.sleep(2 * _POLL_SECONDS)  # one to post it, one for the others to read it
        if not self._ending:
            say(f"error: {verdict}; ending all processes")
            os._exit(1)


_watch: Watch | None = None


def start(client: Any, closed: threading.Event, limits: config.Hosts) -> Watch:
    """Start the watch of this process, to which `note` reports from now on."""
    global _watch
    _watch = Watch(client, closed, limits)
    return _watch


def note(doing: str, *, slow: bool = False) -> None:
    """Record that this process goes on to `doing`.

    All processes make the same notes in the same order. `slow` marks work that may take long now and then
    (compiling, reading weights, a checkpoint). In a process that runs alone it does nothing.
    """
    if _watch is not None:
        _watch.note(doing, slow=slow)


def tell_failed(reason: str) -> None:
    """Tell the other processes of an error in a thread of this one, before its main thread can.

    The main thread may be waiting for them, and they for the thread that failed. In a process that runs alone
    it does nothing.
    """
    if _watch is not None:
        _watch.tell_failed(reason)


def _clock(ago: float) -> str:
    return f"{time.strftime('%H:%M:%S', time.localtime(time.time() - ago))} ({ago:.0f} s)"
