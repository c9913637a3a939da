"""Keep processes that decode, and end each that takes too long, dies, or works for a client that has gone."""

import asyncio
import contextlib
import json
import logging
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from inti_jax.data.codec.decode import DecodeError
from inti_jax.serving import decoding
from inti_jax.serving.limits import RefusedError
from inti_jax.serving.metrics import Metrics

log = logging.getLogger("inti_jax")

_START_SECONDS = 60.0
_AGAIN_SECONDS = 1.0
_MOST_TEXT = 2**16  # bytes
_VALID = "send a video file that FFmpeg reads, such as MP4"


class Loaded(NamedTuple):
    """The views of a video, and its facts."""

    video: dict[str, Any]
    views: UInt8[np.ndarray, "V T H W 3"]


class Decoders:
    """A number of processes, each of which decodes one video at a time."""

    def __init__(self, recipe: decoding.Recipe, metrics: Metrics):
        """Make none yet: `start` does."""
        self._recipe, self._metrics = recipe, metrics
        self._idle: asyncio.Queue[_Worker] = asyncio.Queue()
        self._all: set[_Worker] = set()
        self._replacing: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(2, "decoders")
        # Processes are forked from one that has imported all they need and does nothing else, so that another
        # one takes milliseconds.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([decoding.__name__])

    async def start(self) -> None:
        """Start the processes. Raises OSError, EOFError or TimeoutError where one does not start."""
        for _ in range(self._recipe.limits.decoders):
            worker = await self._worker()
            self._idle.put_nowait(worker)

    async def close(self) -> None:
        """End the processes."""
        for replacing in self._replacing:
            replacing.cancel()
        await asyncio.gather(*self._replacing, return_exceptions=True)
        for worker in list(self._all):
            await self._end(worker)
        self._threads.shutdown()

    async def __call__(self, descriptor: int) -> Loaded:
        """Decode the video in an open file. Raises RefusedError where it cannot be, or takes too long."""
        worker = await self._idle.get()
        started = time.monotonic()
        whole = False
        try:
            async with asyncio.timeout(self._recipe.limits.decode_seconds):
                found = await worker.decode(descriptor, self._recipe.shape)
            whole = True
            return found
        except TimeoutError:
            seconds = self._recipe.limits.decode_seconds
            raise RefusedError(
                504, f"the video was not decoded within {seconds:g} s: send a shorter or smaller one"
            ) from None
        except (EOFError, ConnectionError):
            raise RefusedError(422, f"the decoder crashed on the video: {_VALID}") from None
        except DecodeError as error:
            whole = True
            raise RefusedError(422, f"the video cannot be labelled: {error}; {_VALID}") from None
        finally:
            self._metrics.decoding.observe(time.monotonic() - started)
            if whole:
                self._idle.put_nowait(worker)
            else:  # also where the client has gone
                replacing = asyncio.create_task(self._replace(worker))
                self._replacing.add(replacing)
                replacing.add_done_callback(self._replacing.discard)

    async def _replace(self, worker: "_Worker") -> None:
        self._metrics.restarts.inc()
        await self._end(worker)
        while True:
            try:
                self._idle.put_nowait(await self._worker())
                return
            except (OSError, EOFError, TimeoutError) as error:  # no memory, no processes
                log.warning("a decoder does not start: %s", error or type(error).__name__)
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _worker(self) -> "_Worker":
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            process = self._context.Process(
                target=decoding.run, args=(theirs, self._recipe), name="decoder", daemon=True
            )
            await self._in_thread(process.start)
        reader, writer = await asyncio.open_connection(sock=ours)
        worker = _Worker(process, ours, reader, writer)
        self._all.add(worker)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await reader.readexactly(1)
        except BaseException:
            await self._end(worker)
            raise
        return worker

    async def _in_thread(self, function: Callable[[], object]) -> None:
        """Call what takes the system a while, in threads that nothing else uses."""
        await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def _end(self, worker: "_Worker") -> None:
        self._all.discard(worker)
        worker.process.kill()
        await self._in_thread(worker.process.join)
        if worker.process.exitcode not in (0, -signal.SIGKILL):
            log.warning("a decoder ended with status %s", worker.process.exitcode)
        worker.writer.close()
        with contextlib.suppress(OSError):
            await worker.writer.wait_closed()


class _Worker:
    """A process that decodes, and the socket to it."""

    def __init__(
        self,
        process: BaseProcess,
        channel: socket.socket,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ):
        self.process, self._channel, self._reader, self.writer = process, channel, reader, writer

    async def decode(self, descriptor: int, shape: tuple[int, ...]) -> Loaded:
        """Let the process decode. Raises DecodeError, and EOFError or ConnectionError where it ends."""
        socket.send_fds(self._channel, [b"+"], [descriptor])
        (length,) = decoding.HEAD.unpack(await self._reader.readexactly(decoding.HEAD.size))
        if length > _MOST_TEXT:
            raise EOFError
        head = json.loads(await self._reader.readexactly(length))
        if "error" in head:
            raise DecodeError(head["error"])
        data = await self._reader.readexactly(int(np.prod(shape)))
        return Loaded(head, np.frombuffer(data, np.uint8).reshape(shape))
