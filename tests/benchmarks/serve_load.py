"""Ask the service with many clients at once, some of which send broken or huge videos or go away.

    python -m tests.benchmarks.serve_load batches
    python -m tests.benchmarks.serve_load mixed --seconds 300

The server is the command, in processes of its own, with a tiny model of a few steps. With `batches` it is
asked for `--seconds` each with batches of at most 1, 2, 4, ... videos, by clients that send good videos of
the model's size alone: answers a second. With `mixed`, clients of all kinds ask it: answers by status,
latencies, and the memory of the server's processes in the first and the last fifth of the time. Then 2 GiB
are uploaded twice, with and without their size announced. Ends with an error where a client waits longer than
a request may take, or memory grows.
"""

import argparse
import collections
import contextlib
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from inti_jax.data.builders.motion_digits import MotionDigits
from inti_jax.training import loop
from tests.configs import INTI, tiny
from tests.data import clips

MEBIBYTE = 2**20
TIMEOUT = 30.0  # seconds that a request may take
PART = b'--x\r\nContent-Disposition: form-data; name="video"; filename="x"\r\n\r\n'
END = b"\r\n--x--\r\n"
# The share of each kind of client.
KINDS = {
    "good": 0.7,
    "broken": 0.1,
    "huge": 0.05,
    "killed in the upload": 0.1,
    "killed before the answer": 0.05,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("batches", "mixed"))
    parser.add_argument("--seconds", type=float, help="by default 15 for each size of batches, and 300 mixed")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        run = make_run(Path(directory))
        for batch in arguments.batches if arguments.what == "batches" else ():
            with started(run, batch) as server:
                small = clips.encode(clips.moving_square(16, 32, 32))
                load = Load(server, small, arguments.clients, {"good": 1.0})
                load.run(arguments.seconds or 15)
                mean = server.figure("batch_size_sum") / server.figure("batch_size_count")
                print(
                    f"batches of at most {batch}: {load.rate():.1f} answers a second, {mean:.1f} in a batch",
                    flush=True,
                )
        if arguments.what == "batches":
            return
        with started(run, 8) as server:
            video = clips.encode(clips.moving_square(60, 240, 320))
            load = Load(server, video, arguments.clients, KINDS)
            load.run(arguments.seconds or 300)
            load.report()
            assert not load.hung, f"{load.hung} clients waited for more than {TIMEOUT + 10:.0f} s"
            first, last = load.memory()
            assert last < 1.1 * first + 50, "memory grows"
            upload(server, announced=True)
            upload(server, announced=False)
            assert server.figure("waiting_requests") == 0


class Server:
    """The command's process, and where it listens."""

    def __init__(self, process: subprocess.Popen, port: int):
        self.process, self.port = process, port

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT + 10)

    def figure(self, name: str) -> float:
        with self.connect() as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            text = b"".join(iter(lambda: client.recv(65536), b"")).decode()
        found = re.search(rf"^inti_jax_{name} (\S+)$", text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def memory(self) -> tuple[float, float]:
        """Resident MiB of the server, and the private and shared share (PSS) of all its processes."""
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        family = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= more
        total = 0.0
        for pid in family:
            with contextlib.suppress(OSError, StopIteration):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MEBIBYTE, total


def make_run(directory: Path) -> Path:
    """Train the tiny model for a few steps."""
    MotionDigits(data_dir=directory / "data", movements={"train": 8, "val": 4}).build()
    loop.train(tiny(directory / "data", **INTI), directory / "run")
    return directory / "run"


@contextlib.contextmanager
def started(run: Path, batch: int) -> Iterator[Server]:
    command = [sys.executable, "-m", "inti_jax.serve", "--checkpoint", str(run), "--port", "0"]
    command += ["--batch", str(batch), "--timeout", str(TIMEOUT)]
    log = run.parent / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    try:
        while " ready after " not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        found = re.search(r"serving on http://127.0.0.1:(\d+)", log.read_text())
        assert found is not None
        yield Server(process, int(found[1]))
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT + 10) == 0, log.read_text()
    finally:
        process.kill()


class Load:
    """Clients that ask for a while, each one request after the other."""

    def __init__(self, server: Server, video: bytes, clients: int, kinds: dict[str, float]):
        self._server, self._video, self._clients, self._kinds = server, video, clients, kinds
        self._lock = threading.Lock()
        self._answers: dict[str, list[tuple[str, float]]] = collections.defaultdict(list)
        self._memory: list[tuple[float, float]] = []
        self._seconds = 0.0
        self.hung = 0

    def run(self, seconds: float) -> None:
        self._seconds = seconds
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=self._ask, args=(n, until)) for n in range(self._clients)]
        for thread in threads:
            thread.start()
        while time.monotonic() < until:
            self._memory.append(self._server.memory())
            time.sleep(1)
        for thread in threads:
            thread.join(TIMEOUT + 20)
            self.hung += thread.is_alive()

    def rate(self) -> float:
        return sum(status == "200" for found in self._answers.values() for status, _ in found) / self._seconds

    def memory(self) -> tuple[float, float]:
        """The mean PSS of the first and the last fifth of the time."""
        count = max(1, len(self._memory) // 5)
        return tuple(
            statistics.mean(total for _, total in part)
            for part in (self._memory[:count], self._memory[-count:])
        )

    def report(self) -> None:
        print(f"{self._clients} clients for {self._seconds:.0f} s: {self.rate():.1f} answers a second")
        print("client | status | count | median s | 95th s")
        for kind, found in self._answers.items():
            for status in sorted({status for status, _ in found}):
                times = sorted(seconds for each, seconds in found if each == status)
                late = times[int(0.95 * (len(times) - 1))]
                print(f"{kind} | {status} | {len(times)} | {statistics.median(times):.2f} | {late:.2f}")
        count = max(1, len(self._memory) // 5)
        for name, part in (("first", self._memory[:count]), ("last", self._memory[-count:])):
            server, total = (statistics.mean(column) for column in zip(*part, strict=True))
            print(f"memory, {name} fifth of the time: server {server:.0f} MiB, all processes {total:.0f} MiB")
        most = max(total for _, total in self._memory)
        print(f"memory, most: all processes {most:.0f} MiB", flush=True)

    def _ask(self, number: int, until: float) -> None:
        chance = random.Random(number)
        while time.monotonic() < until:
            (kind,) = chance.choices(list(self._kinds), list(self._kinds.values()))
            started = time.monotonic()
            try:
                with self._server.connect() as client:
                    status = _request(client, kind, self._video, chance)
            except TimeoutError:
                status = "none in time"
                with self._lock:
                    self.hung += 1
            except OSError as error:
                status = type(error).__name__
            with self._lock:
                self._answers[kind].append((status, time.monotonic() - started))
            if status == "503":
                time.sleep(chance.random())  # as it was told


def _request(client: socket.socket, kind: str, video: bytes, chance: random.Random) -> str:
    if kind == "broken":
        place = chance.randrange(len(video))
        video = video[:place] if chance.random() < 0.5 else os.urandom(place + 1)
    length = 2**31 if kind == "huge" else len(PART + video + END)
    client.sendall(
        b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: %d\r\n\r\n" % length + PART
    )
    if kind == "killed in the upload":
        client.sendall(video[: chance.randrange(len(video))])
        return "gone"
    client.sendall(video + END)
    if kind == "killed before the answer":
        time.sleep(chance.random() / 4)
        return "gone"
    return _status(client)


def _status(client: socket.socket) -> str:
    answer = client.recv(1000)
    return answer.split()[1].decode() if answer.startswith(b"HTTP/1.1 ") else "no answer"


def upload(server: Server, *, announced: bool) -> None:
    """Upload 2 GiB as fast as they are taken, and say what came of it."""
    before, started, sent = server.memory()[1], time.monotonic(), 0
    how = b"Content-Length: 2147483648" if announced else b"Transfer-Encoding: chunked"
    data = bytes(MEBIBYTE)
    most = before
    with server.connect() as client:
        client.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n" + how + b"\r\n\r\n"
        )
        with contextlib.suppress(ConnectionError):
            first = True
            for number in range(2048):
                body = PART + data if first else data
                client.sendall(body if announced else b"%x\r\n" % len(body) + body + b"\r\n")
                first, sent = False, sent + len(body)
                if number % 128 == 0:
                    most = max(most, server.memory()[1])
        status = _status(client)
    print(
        f"an upload of 2 GiB, {'announced' if announced else 'in chunks'}: status {status} after "
        f"{time.monotonic() - started:.1f} s, {sent / MEBIBYTE:.0f} MiB sent; memory at most "
        f"{most - before:+.0f} MiB",
        flush=True,
    )
    assert status == "413"


if __name__ == "__main__":
    main()
