"""Answer requests: the routes, and the way of a video from a request to its labels."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

import inti_jax
from inti_jax import pages
from inti_jax.data import sampling
from inti_jax.evaluation.inference import FileModel
from inti_jax.serving import description, uploads, urls
from inti_jax.serving.batching import Batcher, sizes
from inti_jax.serving.decoders import Decoders
from inti_jax.serving.decoding import Recipe
from inti_jax.serving.guard import Guard
from inti_jax.serving.limits import LOCAL, MEBIBYTE, Access, Limits, Places, RefusedError
from inti_jax.serving.metrics import Metrics

log = logging.getLogger("inti_jax")

_TOPK = 5
_GONE = 499  # a status for metrics alone, since nobody is there to see it
# The page's own policy, in its head, is narrower.
_PAGE_POLICY = "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"


class Service:
    """A model, the processes that decode for it, and the requests that are being answered."""

    def __init__(self, limits: Limits, access: Access = LOCAL):
        """Make a service that is not ready until `start`."""
        self.limits, self.access = limits, access
        self.metrics = Metrics()
        self._places = Places(limits.waiting)
        # Clips that are decoded take memory, so as many as keep model and decoders busy, and no more.
        self._clips = asyncio.Semaphore(2 * limits.batch + limits.decoders)
        self._model: FileModel | None = None
        self._decoders: Decoders | None = None
        self._batcher: Batcher | None = None
        self.metrics.watch(
            "waiting_requests", "Requests that are being answered.", lambda: self._places.taken
        )
        self.metrics.watch("ready", "1 where requests are answered.", lambda: self.unready() is None)

    async def start(self, model: FileModel) -> None:
        """Start the processes, and compile the model's programs."""
        started = time.monotonic()
        recipe = Recipe(model.data, model.settings, self.limits)
        self._decoders = Decoders(recipe, self.metrics)

        def compile_all() -> None:
            for size in sizes(self.limits.batch):
                model.values(np.zeros((size, *recipe.shape), np.uint8))

        await asyncio.gather(self._decoders.start(), asyncio.to_thread(compile_all))
        self._batcher = Batcher(model.values, self.limits.batch, self.limits.batch_seconds, self.metrics)
        self._model = model
        log.info("ready after %.1f s", time.monotonic() - started)

    async def close(self) -> None:
        """End the processes, and the model's thread."""
        if self._decoders is not None:
            await self._decoders.close()
        if self._batcher is not None:
            self._batcher.close()

    def unready(self) -> str | None:
        """Return why no request is answered at the moment, or None."""
        if self._model is None or self._batcher is None:
            return "the model is being loaded"
        if (seconds := self._batcher.busy_seconds) > self.limits.request_seconds:
            return f"the model has been at one batch for {seconds:.0f} s"
        return None

    @property
    def model(self) -> FileModel:
        """The model. Raises RefusedError where it is not ready."""
        if self._model is None or (reason := self.unready()) is not None:
            raise RefusedError(503, f"not ready: {reason or 'the model is being loaded'}")
        return self._model

    async def predict(self, request: Request) -> dict[str, Any]:
        """Answer a request for predictions. Raises RefusedError and ClientDisconnect."""
        model, limits = self.model, self.limits
        with self._places.taking():
            stage = 408, "the video did not arrive"
            try:
                async with (
                    asyncio.timeout(limits.request_seconds),
                    uploads.received(request, limits.upload_bytes, self.metrics) as asked,
                ):
                    topk = self._topk(asked.topk)
                    stage = 504, "the video was not labelled"
                    video, values = await _unless_gone(request, self._label(asked))
            except TimeoutError:
                status, what = stage
                raise RefusedError(
                    status, f"{what} within {limits.request_seconds:g} s: try again, or send a smaller one"
                ) from None
        probabilities = values.mean(axis=0)
        if not np.isfinite(probabilities).all():
            raise RefusedError(500, "the model's outputs are not finite: its weights are damaged")
        labels = model.record.dataset.labels
        best = np.argsort(-probabilities, kind="stable")[:topk]
        found = [{"label": labels[k], "probability": float(probabilities[k])} for k in best]
        return {"predictions": found, "video": video}

    def describe(self) -> dict[str, Any]:
        """Describe the model and the limits. Raises RefusedError where the model is not ready."""
        model, limits = self.model, self.limits
        data, record = model.data, model.record
        return {
            "labels": list(record.dataset.labels),
            "activation": "sigmoid" if record.config.train.multi_label else "softmax",
            "frames": data.num_frames,
            "frames_needed": sampling.span(data.num_frames, data.sampling, data.stride),
            "resolution": list(data.height_width),
            "views": model.settings.clips * model.settings.crops,
            "inti_jax": inti_jax.__version__,
            "limits": {
                "megabytes": limits.upload_bytes / MEBIBYTE,
                "frames": limits.frames,
                "decode_seconds": limits.decode_seconds,
                "request_seconds": limits.request_seconds,
                "urls": self.access.urls,
            },
        }

    async def _label(self, asked: uploads.Asked) -> tuple[dict[str, Any], np.ndarray]:
        """Return the facts of a video and its probabilities in each view, [V, K]."""
        assert self._decoders is not None and self._batcher is not None
        async with self._file(asked) as descriptor, self._clips:
            loaded = await self._decoders(descriptor)
            try:
                return loaded.video, await self._batcher(loaded.views)
            except Exception:  # it is in the log
                raise RefusedError(500, "the model failed: the server's log has the reason") from None

    @asynccontextmanager
    async def _file(self, asked: uploads.Asked) -> AsyncIterator[int]:
        """Give the descriptor of the video's file, which for a URL is fetched."""
        if asked.video is not None:
            await asyncio.to_thread(asked.video.flush)
            yield asked.video.fileno()
        elif not self.access.urls:
            raise RefusedError(
                403, "this server fetches no URLs: upload the file, or start the server with --allow_urls"
            )
        else:
            networks, most = self.access.networks, self.limits.upload_bytes
            async with urls.fetched(asked.url or "", most, networks, self.metrics) as file:
                yield file.fileno()

    def _topk(self, given: Any) -> int:
        """Read the number of labels, which a form has as text. Raises RefusedError."""
        if given is None:
            return _TOPK
        text = str(given) if isinstance(given, int | str) and not isinstance(given, bool) else ""
        if not re.fullmatch(r"[1-9][0-9]{0,8}", text, re.ASCII):
            raise RefusedError(400, f"`topk` is {str(given)[:20]!r}: it should be a number of labels, from 1")
        return int(text)


def make(service: Service) -> ASGIApp:
    """Make the application of a service."""

    async def predict(request: Request) -> Response:
        started = time.monotonic()
        status = _GONE
        try:
            answer = JSONResponse(await service.predict(request))
            status = answer.status_code
            return answer
        except RefusedError as error:
            status = error.status
            raise
        except ClientDisconnect:
            return Response(status_code=_GONE)
        finally:
            service.metrics.requests.labels(status).inc()
            service.metrics.seconds.observe(time.monotonic() - started)

    async def page(request: Request) -> Response:
        limits = service.limits
        text = pages.render(
            "serve.html",
            title="Label a video",
            topk=_TOPK,
            megabytes=limits.upload_bytes / MEBIBYTE,
            urls=service.access.urls,
        )
        return HTMLResponse(text, headers={"Content-Security-Policy": _PAGE_POLICY})

    async def model(request: Request) -> Response:
        return JSONResponse(service.describe())

    async def health(request: Request) -> Response:
        reason = service.unready()
        if reason is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "error": reason}, 503, headers={"Retry-After": "1"})

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(request: Request) -> Response:
        return JSONResponse(description.openapi(service.limits))

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        return JSONResponse({"error": error.reason}, error.status, headers=error.headers)

    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "the server failed: its log has the reason"}, 500)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        reason = {404: "there is nothing here", 405: f"{request.method} is not for this"}
        paths = ", ".join(f"{'/'.join(sorted(route.methods or ()))} {route.path}" for route in routes)
        said = f"{reason.get(error.status_code, error.detail)}: there are {paths}"
        return JSONResponse({"error": said}, error.status_code, headers=error.headers)

    routes = [
        Route("/", page),
        Route("/v1/predict", predict, methods=["POST"]),
        Route("/v1/model", model),
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi),
    ]
    handlers: Any = {RefusedError: refused, HTTPException: unknown, Exception: failed}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), service.access.names)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """Return the result of `work`, which ends where the client goes. Raises ClientDisconnect then."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, waiting = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, waiting):
            task.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)
