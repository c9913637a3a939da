"""Listen on a socket, load the model, and serve until a signal asks to stop."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from inti_jax.errors import UserError
from inti_jax.evaluation.inference import FileModel
from inti_jax.serving import app
from inti_jax.serving.limits import LOCAL, Access, Limits

log = logging.getLogger("inti_jax")

_BACKLOG = 256
_IDLE_SECONDS = 5.0  # for which a connection is kept after an answer


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address of this machine. Raises UserError where that cannot be."""
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", error))
        raise UserError(f"--host {host} is no address of this machine: {reason}") from None
    try:
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno is None:
            raise
        reason = os.strerror(error.errno)
        raise UserError(f"--host {host} --port {port}: {reason}; give another port, or 0 for any") from None


class Server:
    """A service on a socket."""

    def __init__(self, listening: socket.socket, limits: Limits, access: Access = LOCAL):
        """Take the socket, which is closed in the end."""
        self.service = app.Service(limits, access)
        self._listening = listening
        host, port = listening.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                app.make(self.service),
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=int(_IDLE_SECONDS),
                timeout_graceful_shutdown=int(limits.request_seconds) + 1,
            )
        )

    async def serve(self, load: Callable[[], FileModel]) -> None:
        """Serve until `stop` or, in the main thread, SIGTERM or SIGINT; answer what has come until then.

        `load` gives the model, while requests for it are refused. Passes on what it raises.
        """
        starting = asyncio.create_task(self._start(load))
        tidying = asyncio.create_task(self._close_idle())
        try:
            await self._server.serve([self._listening])
        finally:
            tidying.cancel()
            # A model that is being loaded cannot be interrupted.
            await asyncio.gather(tidying, return_exceptions=True)
            try:
                await starting
            finally:
                await self.service.close()

    def stop(self) -> None:
        """Ask the server to stop, from any thread."""
        self._server.should_exit = True

    async def _start(self, load: Callable[[], FileModel]) -> None:
        try:
            model = await asyncio.to_thread(load)
            if not self._server.should_exit:
                await self.service.start(model)
        except BaseException:
            self.stop()
            raise

    async def _close_idle(self) -> None:
        """Close connections on which no request comes, and those that go on sending after their answer."""
        seen: dict[Any, Any] = {}
        while True:
            await asyncio.sleep(self.service.limits.head_seconds)
            connections: set[Any] = set(self._server.server_state.connections)
            idle = {
                each: each.cycle for each in connections if each.cycle is None or each.cycle.response_complete
            }
            for connection, cycle in idle.items():
                if connection in seen and seen[connection] is cycle:
                    connection.transport.close()
            seen = idle


def run(listening: socket.socket, load: Callable[[], FileModel], limits: Limits, access: Access) -> None:
    """Serve until SIGTERM or SIGINT. Passes on what `load` raises."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    # uvicorn raises the signal again once it has stopped, which then ends no process.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    asyncio.run(_run(listening, load, limits, access))


async def _run(
    listening: socket.socket, load: Callable[[], FileModel], limits: Limits, access: Access
) -> None:
    server = Server(listening, limits, access)
    log.info("serving on %s (Ctrl-C stops)", server.url)
    await server.serve(load)
    log.info("stopped")
