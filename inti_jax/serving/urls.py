"""Fetch videos from the web for a client that is not trusted: from public addresses, within limits.

The address is checked where the connection is made, after the name was resolved and for each redirect. So
neither a name that resolves to an address of this network nor one that resolves anew leads past the check.
"""

import asyncio
import ipaddress
import socket
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import IO, Any
from urllib.parse import urlsplit

import aiohttp

from inti_jax.serving.limits import MEBIBYTE, Network, RefusedError
from inti_jax.serving.metrics import Metrics

_REDIRECTS = 3
_PART = 2**16  # bytes
_LONGEST = 2048  # characters
# IPv6 addresses that stand for IPv4 ones (RFC 6052).
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Tell whether an address is one of the public internet, and so is any IPv4 address in it."""
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return True
    inside = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    return all(is_public(each) for each in inside if each is not None)


@asynccontextmanager
async def fetched(
    url: str, most: int, networks: Iterable[Network], metrics: Metrics
) -> AsyncIterator[IO[bytes]]:
    """Fetch a file of at most `most` bytes; inside, it is there, without a name.

    `networks` are allowed besides public addresses. Raises RefusedError where it cannot be had.
    """
    _check(url)
    allowed, refused = tuple(networks), []

    def connected(info: Any) -> socket.socket:
        """Make the socket for a connection to an address, to which aiohttp then connects."""
        family, kind, protocol, _, where = info
        address = ipaddress.ip_address(where[0].partition("%")[0])
        if not is_public(address) and not any(address in network for network in allowed):
            refused.append(address)
            raise OSError("it is no public address")
        return socket.socket(family, kind, protocol)

    with tempfile.TemporaryFile() as file:
        connector = aiohttp.TCPConnector(socket_factory=connected, use_dns_cache=False, limit=1)
        try:
            # Neither cookies nor the proxies and passwords of this machine are used, and nothing is unpacked.
            async with aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            ) as session:
                await _download(session, url, most, file, metrics)
        except (aiohttp.ClientError, OSError, ValueError):
            # No more, since it would tell what there is in this network.
            why = "its server cannot be reached, or does not answer as one of the web"
            if refused:
                why = "it leads to an address that is not one of the public internet"
            raise RefusedError(422, f"the URL cannot be fetched: {why}") from None
        yield file


async def _download(
    session: aiohttp.ClientSession, url: str, most: int, file: IO[bytes], metrics: Metrics
) -> None:
    headers = {"Accept-Encoding": "identity"}
    async with session.get(url, max_redirects=_REDIRECTS, headers=headers) as response:
        _check(str(response.url))
        if response.status != 200:
            raise RefusedError(422, f"the URL cannot be fetched: its server answers {response.status}")
        count = 0
        async for part in response.content.iter_chunked(_PART):
            count += len(part)
            metrics.received.inc(len(part))
            if count > most:
                raise RefusedError(
                    413, f"the file at the URL is too large: give one of at most {most / MEBIBYTE:.3g} MiB"
                )
            await asyncio.to_thread(file.write, part)
        await asyncio.to_thread(file.flush)
    if not count:
        raise RefusedError(422, "the file at the URL is empty")


def _check(url: str) -> None:
    """Raise RefusedError unless `url` is one of the web."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or len(url) > _LONGEST or not url.isprintable() or " " in url:
        raise RefusedError(400, "`url` should read https://HOST/PATH or http://HOST/PATH")
