"""A service in this process, on loopback."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import httpx

from inti_jax.serving import server
from inti_jax.serving.limits import LOCAL, Access, Limits


class Running(NamedTuple):
    """A server that is ready, and a client of it."""

    server: server.Server
    client: httpx.Client

    def post(self, video: bytes, **fields: object) -> httpx.Response:
        return self.client.post("/v1/predict", files={"video": ("x.mp4", video)}, data=fields)

    def error(self, *arguments, **keywords) -> tuple[int, str]:
        """The status and the reason of a request that is refused."""
        answer = self.client.request(*arguments, **keywords)
        assert set(answer.json()) == {"error"}, answer.text
        return answer.status_code, answer.json()["error"]

    def figures(self) -> dict[str, float]:
        """Read the figures of /metrics, by name with labels."""
        lines = self.client.get("/metrics").text.splitlines()
        return {
            name: float(value)
            for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        }

    def taken(self) -> float:
        """The number of requests that are being answered."""
        return self.figures()["inti_jax_waiting_requests"]

    def wait_until_free(self) -> None:
        """Wait until no request is being answered."""
        until(lambda: not self.taken())


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    """Wait until `holds`."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it does not come to hold"
        time.sleep(0.02)


@contextlib.contextmanager
def serving(model, access: Access = LOCAL, **limits: object) -> Iterator[Running]:
    listening = server.listen("127.0.0.1", 0)
    made = server.Server(listening, Limits(**({"batch": 4, "decoders": 2} | limits)), access)
    thread = threading.Thread(target=lambda: asyncio.run(made.serve(lambda: model)))
    thread.start()
    try:
        with httpx.Client(base_url=made.url, timeout=30, trust_env=False) as client:
            until(lambda: client.get("/health").status_code == 200)
            yield Running(made, client)
    finally:
        made.stop()
        thread.join(30)
        assert not thread.is_alive()
