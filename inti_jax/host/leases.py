"""Hold objects in a store so that one process at a time does, by leases that are renewed.

An object store cannot lock a file. But it writes an object only if nobody wrote it since it was last read
(Cloud Storage's generations), through TensorStore's conditional writes. The holder writes the
object again every few seconds. Whoever wants it watches: an object that stays as it is has lost its holder.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inti_jax.errors import UserError
from inti_jax.host import stores
from inti_jax.host.repeating import repeated

log = logging.getLogger("inti_jax")

# Seconds between renewals, and after which a lease that was not renewed is taken over.
_RENEWED = 10.0
_LOST = 60.0


class HeldError(Exception):
    """The error that another process holds the file. Its message is that process's note about itself."""


@contextlib.contextmanager
def held(url: str) -> Iterator[None]:
    """Hold the object `url`: create it, renew it, and delete it in the end.

    A lease that is not renewed for a minute is taken over, and one of a process of this machine that is gone
    is taken over at once. A process that finds its own lease taken over stops with SIGTERM. Raises HeldError
    where another process holds it, and UserError where the store cannot be written.
    """
    lease = _Lease(url)
    lease.take()
    try:
        with repeated(lease.renew, _RENEWED, "lease"):
            yield
    finally:
        lease.give_back()


class _Lease:
    """One object, and the generation of it that this process wrote."""

    def __init__(self, url: str):
        import tensorstore  # late: few commands hold a run

        self._url = url
        parent, _, self._name = url.rpartition("/")
        self._store = self._ask(tensorstore.KvStore.open(stores.key_values(parent)))
        self._holder = {
            "host": socket.gethostname(),
            "boot": _boot(),
            "process": os.getpid(),
            "id": uuid.uuid4().hex,
        }
        self._generation = b""
        self._lost = False

    def take(self) -> None:
        """Write the object once nobody holds it. Raises HeldError where another process renews it."""
        told = False
        since, seen = time.monotonic(), None
        while True:
            found = self._ask(self._store.read(self._name))
            if found.state == "missing" or _is_gone(found.value):
                if self._write(found.stamp.generation):
                    return
                continue  # another process was faster, or the store lost the answer: look again
            if seen is None:
                seen = found.stamp.generation
            elif found.stamp.generation != seen:
                raise HeldError(_described(found.value))
            if time.monotonic() - since >= _LOST:
                log.warning("taking over %s from %s, which is gone", self._url, _described(found.value))
                if self._write(found.stamp.generation):
                    return
                raise HeldError(_described(found.value))
            if not told:
                log.info("waiting up to %d s to see if %s still runs", _LOST, _described(found.value))
                told = True
            time.sleep(_RENEWED / 5)

    def renew(self) -> bool:
        """Write the object again; stop this process and return False where another has taken it over."""
        if not self._write(self._generation):
            self._lost = True
            log.error("another process took over %s, which was not renewed in time", self._url)
            os.kill(os.getpid(), signal.SIGTERM)
        return not self._lost

    def give_back(self) -> None:
        """Delete the object, if it is still this process's. What fails is left for the next to take over."""
        if not self._lost:
            with contextlib.suppress(UserError):
                self._ask(self._store.write(self._name, None, if_equal=self._generation))

    def _write(self, generation: bytes) -> bool:
        """Write the object if it still has `generation`; return False where it has another.

        A write whose answer was lost counts as done: the object then names this process.
        """
        note = json.dumps(self._holder | {"renewed": time.time()}).encode()
        self._ask(self._store.write(self._name, note, if_equal=generation))
        found = self._ask(self._store.read(self._name))
        if _parsed(found.value).get("id") != self._holder["id"]:
            return False
        self._generation = found.stamp.generation
        return True

    def _ask(self, future: Any) -> Any:
        """Wait for TensorStore's answer. Raises UserError where the store gives none."""
        try:
            return future.result(timeout=_LOST / 2)
        except (ValueError, OSError, TimeoutError) as error:
            raise stores.told(self._url, error) from None


def _parsed(note: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        if isinstance(found := json.loads(note), dict):
            return found
    return {}


def _described(note: bytes) -> str:
    found = _parsed(note)
    return f"process {found.get('process', '?')} on {found.get('host', '?')}"


def _is_gone(note: bytes) -> bool:
    """Tell whether the holder was a process of this machine, since its start, that has ended."""
    found = _parsed(note)
    mine = found.get("host") == socket.gethostname() and found.get("boot") == _boot() != ""
    return mine and isinstance(found.get("process"), int) and not Path(f"/proc/{found['process']}").exists()


def _boot() -> str:
    """Name this start of the machine, and the namespace in which processes have their numbers."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""
