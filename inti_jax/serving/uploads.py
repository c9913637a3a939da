"""Receive the body of a request, within its limits: a form with a video, or JSON with its URL."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import IO, Any, NamedTuple

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from inti_jax.serving.limits import MEBIBYTE, RefusedError
from inti_jax.serving.metrics import Metrics

_FORM, _JSON = "multipart/form-data", "application/json"
_VALID = f"send {_FORM} with the video as the file `video`"
_VALID_URL = f'{_VALID}, or {_JSON} such as {{"url": "https://..."}}'
_FIELDS = ("video", "topk")
_MOST_TEXT = 2**14  # bytes of a field, and of JSON
_OVERHEAD = 2**13  # bytes of a form beside its video


class Asked(NamedTuple):
    """Hold what a request asks for: a video as a file without a name or its URL, and how many labels."""

    video: IO[bytes] | None
    url: str | None
    topk: Any


@asynccontextmanager
async def received(request: Request, most: int, metrics: Metrics) -> AsyncIterator[Asked]:
    """Receive the body, of at most `most` bytes of video; inside, the file is there.

    Raises RefusedError where the body is not as it should be or too large, before more of it is read, and
    ClientDisconnect.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (_FORM, _JSON):
        raise RefusedError(415, f"the body is {kind or 'of no type'}: {_VALID_URL}")
    too_large = RefusedError(
        413, f"the request is too large: send a video of at most {most / MEBIBYTE:.3g} MiB"
    )
    bounded = _bounded(request, most + _OVERHEAD if kind == _FORM else _MOST_TEXT, too_large, metrics)
    if kind == _JSON:
        yield _read_json(await bounded.body())
        return
    try:
        form = await bounded.form(max_files=1, max_fields=len(_FIELDS), max_part_size=_MOST_TEXT)
    except HTTPException as error:
        raise RefusedError(400, f"the form cannot be read: {error.detail.rstrip('.')}; {_VALID}") from None
    except OSError as error:  # a full disk
        raise RefusedError(507, f"the server cannot keep the video: {error.strerror}") from None
    try:
        for name in form:
            if name not in _FIELDS:
                raise RefusedError(400, f"the form has an unknown field `{name[:80]}`: {_VALID}")
        video, topk = form.get("video"), form.get("topk", "")
        if not isinstance(video, UploadFile) or not isinstance(topk, str):
            raise RefusedError(400, f"the form has no file `video`: {_VALID}")
        if not video.size:
            raise RefusedError(400, f"the file `video` is empty: {_VALID}")
        if video.size > most:
            raise too_large
        yield Asked(video.file, None, topk or None)
    finally:
        await form.close()


def _bounded(request: Request, most: int, too_large: RefusedError, metrics: Metrics) -> Request:
    """Return the request with a body that ends in `too_large` once more than `most` bytes have come."""
    try:
        announced = int(request.headers.get("content-length", "0"))
    except ValueError:
        announced = 0
    if announced > most:
        raise too_large
    count = 0

    async def receive() -> Message:
        nonlocal count
        message = await request.receive()
        if message["type"] == "http.request":
            count += len(message.get("body", b""))
            metrics.received.inc(len(message.get("body", b"")))
            if count > most:
                raise too_large
        return message

    return Request(request.scope, receive)


def _read_json(body: bytes) -> Asked:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(400, f"the body is not JSON: {_VALID_URL}") from None
    if not isinstance(said, dict) or not isinstance(said.get("url"), str) or set(said) - {"url", "topk"}:
        raise RefusedError(
            400, f"the body should be an object with a text `url` and, if you like, `topk`: {_VALID_URL}"
        )
    return Asked(None, said["url"], said.get("topk"))
