"""Define the limits of the service, and the answer of what exceeds one."""

import dataclasses
import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager

MEBIBYTE = 2**20

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limit what one request, and all requests together, may take."""

    upload_bytes: int = 64 * MEBIBYTE  # of a request's body, or of a video that is fetched
    frames: int = 20_000  # of a video
    decode_seconds: float = 20.0  # for decoding a video, from when a process starts on it
    decode_bytes: int = 1024 * MEBIBYTE  # memory of decoding a video
    request_seconds: float = 60.0  # from a request's headers to its answer
    head_seconds: float = 10.0  # for a connection on which no request comes, at least
    waiting: int = 64  # requests at a time
    batch: int = 8  # clips that the model takes at once
    batch_seconds: float = 0.005  # to wait for a batch to fill
    decoders: int = 1  # processes that decode


@dataclasses.dataclass(frozen=True)
class Access:
    """Who may ask, and from where videos may be fetched."""

    names: frozenset[str] = frozenset()  # names of this server besides localhost and addresses
    urls: bool = False  # whether videos are fetched
    networks: tuple[Network, ...] = ()  # from where besides the public internet


LOCAL = Access()  # this machine alone


class RefusedError(Exception):
    """A request that is not answered with predictions: an HTTP status, and the reason in one line."""

    def __init__(self, status: int, reason: str):
        self.status, self.reason = status, reason
        super().__init__(reason)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer: clients may try again where the reason passes."""
        return {"Retry-After": "1"} if self.status in (503, 504) else {}


class Places:
    """The places of requests that are being answered, of which there is a fixed number."""

    def __init__(self, count: int):
        self._count = count
        self.taken = 0

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Take a place inside. Raises RefusedError where none is free."""
        if self.taken >= self._count:
            raise RefusedError(
                503, f"{self.taken} requests are being answered, and no more may wait: try again"
            )
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
