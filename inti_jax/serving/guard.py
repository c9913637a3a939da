"""Refuse what a browser sends on behalf of another site, and add headers that say what a page may do.

A page of any site can make its reader's browser send requests to a server on the reader's machine. Browsers
say so, in `Sec-Fetch-Site` and `Origin`; other programs send neither, and are not restricted. A site can also
let its own name point to this machine, so that both look like one site. Its name is then in `Host`.
"""

import asyncio
import ipaddress
import time
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_READS = ("GET", "HEAD")
_LINGER_SECONDS = 2.0
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # without any, the page's own form would say that it has no origin
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_POLICY = "default-src 'none'; frame-ancestors 'none'"


class Guard:
    """An application in front of another one, which only sees requests that are meant for it."""

    def __init__(self, app: ASGIApp, names: Collection[str]):
        """Let pass requests to `names`, to localhost, and to any address."""
        self._app, self._names = app, {name.lower() for name in names} | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Content-Security-Policy", _POLICY)
            await send(message)

        lingering = _Lingering(scope, receive, with_headers)
        refused = self._refused(scope["method"], Headers(scope=scope))
        app = self._app if refused is None else refused
        await app(scope, lingering.receive, lingering.send)

    def _refused(self, method: str, headers: Headers) -> JSONResponse | None:
        host = headers.get("host", "")
        name = _name(host)
        if not self._is_own(name):
            error = f"this server is not known by `{name[:80]}`: ask by its address, or use --allow_host"
            return JSONResponse({"error": error}, 421)
        if method in _READS:
            return None
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        elsewhere = origin is not None and origin.partition("://")[2].lower() != host.lower()
        if site not in (None, "same-origin", "none") or elsewhere:
            error = (
                "a browser sent this for a page of another site: use this server's own page, or no browser"
            )
            return JSONResponse({"error": error}, 403)
        return None

    def _is_own(self, name: str) -> bool:
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True  # a browser takes no address for another site's


def _name(host: str) -> str:
    """Take the name out of a Host header, which may have a port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


class _Lingering:
    """The two ways of a request, the answer of which ends only when its body was read, for a while.

    Closing a connection on which data wait lets the system discard the answer at its other end.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send):
        headers = Headers(scope=scope)
        self._receive, self._send = receive, send
        # A client that asks first will not send what is refused.
        asks = "expect" in headers
        has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        self._unread = has_body and not asks

    async def receive(self) -> Message:
        """Pass a message on."""
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        """Pass a message on; before the end, read what is left."""
        if message["type"] != "http.response.body" or message.get("more_body", False) or not self._unread:
            await self._send(message)
            return
        await self._send({**message, "more_body": True})
        until = time.monotonic() + _LINGER_SECONDS
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while self._unread and time.monotonic() < until:
                    await self.receive()
        except TimeoutError:
            pass
        await self._send({"type": "http.response.body", "body": b""})
