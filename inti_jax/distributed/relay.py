"""Relay the connection to process 0's coordination service, and keep it open when process 0 is gone.

JAX's client of that service aborts its process in C++ the moment the connection breaks, before anything can
say which host was lost. It does so in every mode that JAX 0.10.2 offers, `jax_enable_recoverability` too.
Through a relay the connection only falls silent, and `lost` is set. liveness.py then ends the run, long
before JAX gives up on the service (`joining.HEARTBEAT_TIMEOUT`).
"""

import contextlib
import socket
import threading
import time

from inti_jax.errors import UserError

_RETRY_SECONDS = 0.5


class Relay:
    """Listens on this machine alone, and passes bytes on to `host`:`port` and back.

    `lost` is set when the connection to it breaks.
    """

    def __init__(self, host: str, port: int, timeout: float):
        """Wait until the service answers, then listen.

        Raises UserError where it does not answer in `timeout` seconds.
        """
        self._target = (host, port)
        self.lost = threading.Event()
        self._connections: list[_Connection] = []
        _connect_in_time(self._target, timeout).close()
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True, name="relay").start()

    @property
    def address(self) -> str:
        """The `HOST:PORT` at which the relay listens."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                connection = _Connection(client, self._target, self.lost)
            except (OSError, RuntimeError):  # no descriptors or threads are left, so nothing gets through
                self.lost.set()
                return
            self._connections.append(connection)  # also keeps the client's side open


class _Connection:
    """One connection of a client through the relay, with a thread for each direction."""

    def __init__(self, client: socket.socket, target: tuple[str, int], lost: threading.Event):
        self._client, self._lost = client, lost
        self._client_left = False
        try:
            self._service = _connect(target)
        except OSError:
            lost.set()
            return
        for pump in (self._up, self._down):
            threading.Thread(target=pump, daemon=True, name="relay").start()

    def _up(self) -> None:
        if _pass_on(self._client, self._service) is self._client:
            self._client_left = True
            with contextlib.suppress(OSError):
                self._service.shutdown(socket.SHUT_RDWR)

    def _down(self) -> None:
        if _pass_on(self._service, self._client) is self._service and not self._client_left:
            self._lost.set()


def _pass_on(source: socket.socket, sink: socket.socket) -> socket.socket:
    """Pass bytes on until one of the two sockets ends, and return that one."""
    while True:
        try:
            data = source.recv(2**16)
        except OSError:
            data = b""
        if not data:
            return source
        try:
            sink.sendall(data)
        except OSError:
            return sink


def _connect(target: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(target)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _connect_in_time(target: tuple[str, int], timeout: float) -> socket.socket:
    deadline = time.monotonic() + timeout
    while True:
        try:
            return socket.create_connection(target, timeout=max(deadline - time.monotonic(), 0.1))
        except OSError as error:
            if time.monotonic() + _RETRY_SECONDS > deadline:
                reason = error.strerror or error
                raise UserError(
                    f"process 0 does not answer at {target[0]}:{target[1]} in {timeout:g} s ({reason}): "
                    "check that it runs and that this is its address"
                ) from error
            time.sleep(_RETRY_SECONDS)
