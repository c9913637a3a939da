"""Stop all hosts at the same point when a signal asks for it.

Three signals ask to stop: SIGTERM, which schedulers send before they take a machine away, SIGINT (Ctrl-C) and
SIGHUP (the terminal is gone). A second SIGTERM or SIGINT ends the process at once.

All hosts pass the same points in the same order: one after each step, and one after each batch of an
evaluation. A host that gets a signal tells the others. Each host then posts the number of points it has
passed, and waits at its next point until all have posted. All hosts stop one point after the furthest of
them. So it is enough that one host gets a signal, and hosts send nothing before that.
"""

import contextlib
import functools
import itertools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax

from inti_jax.distributed import coordination
from inti_jax.errors import Stopped, UserError
from inti_jax.host.command import say

log = logging.getLogger("inti_jax")

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Seconds between two checks for a signal to another host.
_POLL = 1.0
# Seconds in which all hosts should post their counts. Their threads do so whatever the hosts compute.
_AGREE = 60
# Seconds in which a repeated signal is the same request: launchers forward one that the process also gets.
_SAME = 0.5
_END = 0  # not the number of any signal

# All processes count the same rounds in the same order. A key of the service can be set only once.
_rounds = itertools.count()


class Preemption:
    """Turns signals into requests to stop while its context is open; `reached` reports them."""

    def __init__(self) -> None:
        self._client = coordination.client()
        self._index, self._count = jax.process_index(), jax.process_count()
        self._key = f"inti_jax/preemption/{next(_rounds)}"
        self._changed = threading.Condition()
        # `_changed` guards these.
        self._passed = 0
        self._signal: int | None = None
        self._agreeing = False
        self._stop_at: int | None = None
        self._disagreement: UserError | None = None
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._handlers: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            # A thread of its own reads signals: Python's handlers wait for the main thread, which may be in a
            # compilation for minutes.
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._previous_fd = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            for number in _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # ignored under nohup, or a script's `&`
                    self._handlers[number] = signal.signal(number, _note)
            self._start(self._listen)
        if self._client is not None:
            self._start(self._ask_others)
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._say_done()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._pipe is not None:
            signal.set_wakeup_fd(self._previous_fd)
            os.write(self._pipe[1], bytes([_END]))
        for thread in self._threads:
            thread.join()
        for end in self._pipe or ():
            os.close(end)

    def reached(self) -> bool:
        """Pass one point, and return whether it is the one to stop at.

        All hosts pass the same points. Raises UserError where the hosts cannot agree on the one to stop at.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._agreeing)
            if self._disagreement is not None:
                raise self._disagreement
            self._passed += 1
            return self._stop_at is not None and self._passed >= self._stop_at

    def check(self, step: int) -> None:
        """Pass the point after the checkpoint of `step`. Raises Stopped where it is the one to stop at."""
        if self.reached():
            raise self.stopped(step)

    def stopped(self, step: int) -> Stopped:
        """Make the exception that ends the run once the checkpoint of `step` is saved."""
        assert self._signal is not None
        return Stopped(
            f"stopped by {signal.Signals(self._signal).name} at step {step}, with its checkpoint saved; run "
            "the same command to resume",
            self._signal,
        )

    def _start(self, target: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=target, daemon=True, name="preemption"))
        self._threads[-1].start()

    def _listen(self) -> None:
        assert self._pipe is not None
        asked, hung_up = None, False
        while (number := os.read(self._pipe[0], 1)[0]) != _END:
            if number not in self._handlers:
                continue
            if number == signal.SIGHUP:
                # The kernel, the shell and the login manager all send it, the last with a SIGTERM too.
                if asked is None and not hung_up:
                    self._ask(number)
                hung_up = True
            elif asked is None:
                asked = time.monotonic()
                if not hung_up:
                    self._ask(number)
            elif time.monotonic() - asked > _SAME:
                _exit(f"stopped at once by a second {signal.Signals(number).name}", number)

    def _ask(self, number: int) -> None:
        if self._client is None:
            self._stop(number, [self._passed])
            return
        try:
            self._client.key_value_set(f"{self._key}/signal", str(number), allow_overwrite=True)
            # In a thread of its own, so that `_listen` still reads a second signal.
            self._start(functools.partial(self._agree, number))
        except Exception as error:
            self._give_up(number, error)

    def _ask_others(self) -> None:
        while not self._closed.wait(_POLL):
            number = _lookup(self._client, f"{self._key}/signal")
            if number is not None:
                self._agree(int(number))
                return

    def _say_done(self) -> None:
        """Post the final count of points, so that no host that gets a signal later waits for this one."""
        with self._changed:
            if self._client is None or self._signal is not None:
                return  # there is no other host, or `_agree` posts the count
            self._signal = _END
        # Where this fails, the hosts that wait for the count report it.
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{self._key}/passed/{self._index}", str(self._passed))

    def _agree(self, number: int) -> None:
        """Exchange counts of points with all hosts, and stop after the furthest."""
        with self._changed:
            if self._signal is not None:
                return
            self._agreeing, self._signal = True, number
            passed = self._passed
        try:
            self._client.key_value_set(f"{self._key}/passed/{self._index}", str(passed))
            all_passed = [
                int(self._client.blocking_key_value_get(f"{self._key}/passed/{process}", _AGREE * 1000))
                for process in range(self._count)
            ]
            if min(all_passed) == 0:
                # All are about to exit. Host 0 exits last, since JAX aborts the others when it is gone.
                self._client.wait_at_barrier(f"{self._key}/exit", _AGREE * 1000)
                time.sleep(1 if self._index == 0 else 0)
        except Exception as error:  # of the coordination service, or the connection to it
            self._give_up(number, error)
            return
        self._stop(number, all_passed)

    def _stop(self, number: int, passed: list[int]) -> None:
        name = signal.Signals(number).name
        if min(passed) == 0:
            # A step takes all hosts, so none is complete since the start, and there is nothing to save.
            # The main thread may still compile for a while, so the process ends here.
            _exit(f"stopped by {name} before the first step; run the same command to start again", number)
        log.info("%s: stopping after this step; a second signal stops at once", name)
        with self._changed:
            self._signal, self._stop_at, self._agreeing = number, max(passed) + 1, False
            self._changed.notify_all()

    def _give_up(self, number: int, error: Exception) -> None:
        reason = str(error).partition("\n")[0]
        with self._changed:
            self._disagreement = UserError(
                f"{signal.Signals(number).name}, but not all hosts report their step ({reason}): ending "
                "without another checkpoint; run the same command to go on from the last one"
            )
            self._agreeing = False
            self._changed.notify_all()


def _note(number: int, frame: FrameType | None) -> None:
    """Do nothing: only with a handler does Python write the signal's number where `_listen` reads it."""


def _exit(message: str, number: int) -> None:
    """End this process without waiting for any of its threads."""
    say(message)
    os._exit(128 + number)


def _lookup(client: Any, key: str) -> str | None:
    try:
        return client.key_value_try_get(key)
    except Exception:  # no such key; or the service is gone, which its next user reports
        return None
