"""Emulate Cloud Storage on this machine, with its conditional writes and, on request, its faults.

The package gcp-storage-emulator keeps the objects. It knows no generations in conditions, which are added
here: `ifGenerationMatch` of writes and deletions, and `x-goog-generation` of reads. Faults are those that a
store has: 503, answers that take seconds, connections that are cut before or after the work is done, and
permissions that lack.

    python -m tests.stores.emulator --port 9023      # prints the environment for other shells
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import logging
import random
import re
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.storage import Storage

BUCKET = "bucket"
# It logs each object that is not there.
logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)

# A move of an object, which the package does not know.
_MOVE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)")


@dataclasses.dataclass
class Faults:
    """The shares of requests that fail, and permissions that lack."""

    unavailable: float = 0  # answered with 503
    slow: float = 0  # answered after `delay` seconds
    cut: float = 0  # no answer: half of them before the work is done, half after it
    delay: float = 2
    may_write: bool = True
    may_delete: bool = True
    may_read: bool = True
    spoilt: str = (
        ""  # the end of an object's name; its contents have a wrong byte, the next time they are read
    )
    draws: random.Random = dataclasses.field(default_factory=lambda: random.Random(0))


class Emulator:
    """A running server: its address, its faults, which may be changed at any time, and what was asked."""

    def __init__(self, port: int = 0):
        self.faults = Faults()
        self.requests: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        self._storage = Storage(use_memory_fs=True)
        buckets.create_bucket(BUCKET, self._storage)
        handler = partial(_Handler, self)
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def environment(self) -> dict[str, str]:
        """The variables by which gcsfs, TensorStore and ArrayRecord find the server."""
        return {
            "STORAGE_EMULATOR_HOST": self.address,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.address,
            "TENSORSTORE_GCS_HTTP_URL": self.address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
            "FSSPEC_GCS_TOKEN": "anon",  # else gcsfs asks for a machine's account
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else gcsfs asks by gRPC, and waits for a minute
        }

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()

    def names(self, below: str = "") -> list[str]:
        """The names of all objects of the bucket that start with `below`."""
        with self._lock:
            found, _ = self._storage.get_file_list(BUCKET, below)
        return sorted(each["name"] for each in found)

    def read(self, name: str) -> bytes:
        """The contents of an object of the bucket."""
        with self._lock:
            return self._storage.get_file(BUCKET, name)

    def generation(self, bucket: str, name: str) -> str:
        """The generation of an object, "0" where there is none."""
        try:
            return str(self._storage.get_file_obj(bucket, name)["generation"])
        except (NotFound, KeyError):
            return "0"


class _Handler(server.RequestHandler):
    """Answers one request, after the faults that fall on it."""

    def __init__(self, emulator: Emulator, *arguments: Any):
        self._emulator = emulator
        super().__init__(emulator._storage, *arguments)

    def answer(self, method: str) -> None:
        """Answer a request, or do to it what the faults want."""
        emulator, faults = self._emulator, self._emulator.faults
        with emulator._lock:
            emulator.requests.append((method, self.path))
            drawn, late = faults.draws.random(), faults.draws.random() < 0.5
        request = server.Request(self, method)
        _ = request.data  # read it: a client that still writes does not hear an answer
        fails = drawn < faults.unavailable
        cut = not fails and drawn < faults.unavailable + faults.cut
        if drawn > 1 - faults.slow:
            time.sleep(faults.delay)
        may = {"DELETE": faults.may_delete, "GET": faults.may_read}.get(method, faults.may_write)
        if fails:
            self._refuse(503, "the service is not available")
        elif not may:
            self._refuse(403, "no permission")
        elif not cut or late:
            with emulator._lock:
                fault = self._condition(request)
                answer = server.Response(self)
                if fault is None:
                    self._route(request, answer)
            if fault is not None:
                self._refuse(fault, "a condition is not met")
            elif not cut:
                answer.close()
        if cut:
            self.connection.close()

    def _condition(self, request: Any) -> int | None:
        """The status of a request whose `ifGenerationMatch` does not hold."""
        wanted = request.query.get("ifGenerationMatch")
        if not wanted:
            return None
        parts = request.path.split("/b/", 1)[1].split("/o", 1)
        name = request.query["name"][0] if "name" in request.query else parts[1].lstrip("/")
        return None if self._emulator.generation(parts[0], server.unquote(name)) == wanted[0] else 412

    def _route(self, request: Any, answer: Any) -> None:
        """Do what the package's own router does, with an answer that can be held back."""
        if move := _MOVE.fullmatch(request.path):
            bucket, source, target = map(server.unquote, move.groups())
            if self._emulator.generation(bucket, source) == "0":  # a directory, say
                answer.status = server.HTTPStatus.NOT_FOUND
                return
            found, content = self.storage.get_file_obj(bucket, source), self.storage.get_file(bucket, source)
            self.storage.create_file(bucket, target, content, {**found, "name": target})
            self.storage.delete_file(bucket, source)
            answer.json(self.storage.get_file_obj(bucket, target))
            return
        for regex, handlers in server.HANDLERS:
            if match := re.fullmatch(regex, request.path):
                request.set_match(match)
                facts = match.groupdict()
                self._count_from_the_end(facts)
                handlers[request.method](request, answer, self.storage)
                if request.method == "GET" and facts.get("object_id") and answer.status < 300:
                    name = server.unquote(facts["object_id"])
                    answer["x-goog-generation"] = self._emulator.generation(facts["bucket_name"], name)
                    self._spoil(name, answer)
                return
        answer.status = server.HTTPStatus.NOT_IMPLEMENTED

    def _spoil(self, name: str, answer: Any) -> None:
        """Change a byte of an object's whole contents, if the faults want it."""
        faults, content = self._emulator.faults, answer._content
        whole = isinstance(content, bytes) and "range" not in self.headers
        if whole and faults.spoilt and name.endswith(faults.spoilt):
            faults.spoilt = ""
            answer._content = content[:-1] + bytes([content[-1] ^ 1])

    def _count_from_the_end(self, facts: dict[str, str]) -> None:
        """Turn a range of an object's last bytes into one by first byte, which the package knows."""
        if last := re.fullmatch(r"bytes=-(\d+)", self.headers.get("range", "")):
            with contextlib.suppress(NotFound):
                found = self.storage.get_file_obj(facts["bucket_name"], server.unquote(facts["object_id"]))
                self.headers.replace_header("range", f"bytes={max(0, int(found['size']) - int(last[1]))}-")

    def _refuse(self, status: int, message: str) -> None:
        answer = server.Response(self)
        answer.status = SimpleNamespace(value=status, phrase=message)
        answer.write_file(json.dumps({"error": {"code": status, "message": message}}), "application/json")
        answer.close()

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # of a client that has gone, or that was cut off
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_: Any) -> None:
        pass


# The names that the standard library's server looks for.
for _method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
    setattr(_Handler, f"do_{_method}", functools.partialmethod(_Handler.answer, _method))


@contextlib.contextmanager
def running(port: int = 0) -> Iterator[Emulator]:
    """An emulator until the context ends."""
    emulator = Emulator(port)
    try:
        yield emulator
    finally:
        emulator.close()


def main() -> None:
    """Run the emulator until it is interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.stores.emulator", description=main.__doc__)
    parser.add_argument("--port", type=int, default=9023)
    with running(parser.parse_args().port) as emulator:
        print("export", *(f"{name}={value}" for name, value in emulator.environment().items()), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
