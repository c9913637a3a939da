"""Open what a stream comes from: a file, a pipe, a camera or an RTSP URL."""

import contextlib
import dataclasses
import io
import itertools
import logging
import math
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from jaxtyping import UInt8

from inti_jax.data.codec import decode
from inti_jax.data.codec.orientation import Converter
from inti_jax.errors import UserError
from inti_jax.host import stores
from inti_jax.host.paths import input_path

log = logging.getLogger("inti_jax")

STDIN = "-"
# What FFmpeg may open for a URL, by the URL's scheme.
_PROTOCOLS = {"rtsp": "rtsp,rtp,udp,tcp", "rtsps": "rtsp,rtsps,rtp,srtp,udp,tcp,tls"}
_CAMERA = "v4l2"
USUAL_RATE = 25.0  # frames a second of a video that tells neither rate nor times


class Frame(NamedTuple):
    """A decoded frame: its time in seconds from the start, and what converts it to RGB.

    `follows` is False where frames before it are lost.
    """

    seconds: float
    rgb: Callable[[], UInt8[np.ndarray, "H W 3"]]
    follows: bool = True


@dataclasses.dataclass(frozen=True)
class Source:
    """A source of frames, to be opened where it is read.

    A `live` one does not wait for its reader. One that is not a regular file may stall.
    """

    name: str
    open: Callable[[], contextlib.AbstractContextManager[Iterator[Frame]]]
    live: bool = False
    may_stall: bool = True


def find(
    text: str,
    *,
    size: tuple[int, int] | None = None,
    rate: float = USUAL_RATE,
    input_format: str | None = None,
    timeout: float | None = None,
) -> Source:
    """Find the source that a user's text names; nothing is opened yet.

    `-` is stdin, `rtsp://` and `rtsps://` are URLs of cameras, a device such as /dev/video0 is one here, and
    anything else is a file, a named pipe, or the URL of a file. With `size`, the height and width of frames,
    a pipe or a file has raw RGB frames, `rate` a second. With `input_format`, `text` is what FFmpeg's input
    device of that name takes. `timeout` are the seconds after which reading from a network is given up.
    Raises UsageError and UserError for paths and URLs that cannot be read.
    """
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    if input_format is not None or scheme in _PROTOCOLS:
        name = stores.public(text) if scheme else text
        return Source(name, lambda: _live(text, name, scheme, input_format, timeout), live=True)
    if text == STDIN:
        return Source("stdin", lambda: _pipe("stdin", _unbuffered(os.dup(sys.stdin.fileno())), size, rate))
    path = input_path(text)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        raise UserError(f"{path} is a folder: name one video")
    if stat.S_ISCHR(mode):
        return Source(str(path), lambda: _live(str(path), str(path), "", _CAMERA, timeout), live=True)
    if size is not None or not stat.S_ISREG(mode):
        stalls = not stat.S_ISREG(mode)
        return Source(str(path), lambda: _pipe(str(path), _unbuffered(path), size, rate), may_stall=stalls)
    return Source(str(path), lambda: video(path), may_stall=False)


@contextlib.contextmanager
def video(path: Path, start: float = 0.0, end: float = math.inf) -> Iterator[Iterator[Frame]]:
    """Open a video file, and give its frames whose times are from `start` to before `end`, in seconds.

    Frames before `start` are decoded from the nearest keyframe on. The file is read as it is decoded. Raises
    UserError where it is no video, or as soon as it cannot be read on.
    """
    with _naming(str(path)), path.open("rb") as file, decode.opened(file) as (container, stream):
        offset = (container.start_time or 0) / av.time_base
        if start > 0:
            _seek(container, stream, start + offset)
        frames = _decoded(container, stream, str(path), offset)
        yield itertools.takewhile(
            lambda frame: frame.seconds < end,
            itertools.dropwhile(lambda frame: frame.seconds < start, frames),
        )


def duration(path: Path) -> float | None:
    """Read the seconds that a video file announces; None where it announces none.

    Raises UserError where it is no video.
    """
    with _naming(str(path)), path.open("rb") as file, decode.opened(file) as (container, _):
        return None if not container.duration else container.duration / av.time_base


def _seek(container: Any, stream: Any, seconds: float) -> None:
    """Go to the last keyframe before a time, or stay at the start where the format cannot."""
    with contextlib.suppress(av.FFmpegError):
        container.seek(int(seconds / stream.time_base), stream=stream, backward=True)


@contextlib.contextmanager
def _live(
    url: str, name: str, scheme: str, input_format: str | None, timeout: float | None
) -> Iterator[Iterator[Frame]]:
    """Open a camera or a URL by FFmpeg."""
    options = {"rtsp_flags": "prefer_tcp"} if scheme else {}
    if scheme:
        options["protocol_whitelist"] = _PROTOCOLS[scheme]
    with (
        _naming(name),
        av.open(
            url,
            "r",
            format=input_format,
            container_options=options,
            timeout=timeout,
            **decode.ANY_NAMES,
        ) as container,
    ):
        if not container.streams.video:
            raise decode.DecodeError("it has no video stream")
        yield _decoded(container, container.streams.video[0], name, None)


def _unbuffered(file: Path | int) -> io.FileIO:
    """Open a file as it is: a buffer has a lock, without which Python cannot end while a read hangs."""
    return io.FileIO(file, "r")


@contextlib.contextmanager
def _pipe(name: str, file: io.FileIO, size: tuple[int, int] | None, rate: float) -> Iterator[Iterator[Frame]]:
    """Read raw frames of `size` from a file that need not be seekable, or else an encoded video."""
    with file, _naming(name):
        if size is not None:
            yield _raw(file, *size, rate, name)
            return
        with av.open(_Pipe(file), "r", container_options=decode.NOTHING_ELSE) as container:
            if not container.streams.video:
                raise decode.DecodeError("it has no video stream")
            yield _decoded(container, container.streams.video[0], name, None)


class _Pipe:
    """A file as FFmpeg reads it that cannot be sought in."""

    def __init__(self, file: io.FileIO):
        self._file = file

    def read(self, size: int) -> bytes:
        """Read what is there, so that a frame does not wait for the bytes of the next one."""
        return self._file.read(size) or b""


def _raw(file: io.FileIO, height: int, width: int, rate: float, name: str) -> Iterator[Frame]:
    """Read frames of RGB bytes, row by row, until the end."""
    for number in itertools.count():
        data = bytearray(height * width * 3)
        left = memoryview(data)
        while left and (count := file.readinto(left)):
            left = left[count:]
        if left:
            if len(left) < len(data):
                log.warning(
                    "%s ended in the middle of a frame: %d of its %d bytes (%d x %d RGB) came",
                    name,
                    len(data) - len(left),
                    len(data),
                    width,
                    height,
                )
            return
        pixels = np.frombuffer(data, np.uint8).reshape(height, width, 3)
        yield Frame(number / rate, lambda pixels=pixels: pixels)  # type: ignore[misc]


def _decoded(container: Any, stream: Any, name: str, offset: float | None) -> Iterator[Frame]:
    """Decode a stream; leave out what does not decode.

    Times are from `offset` on, or where it is None, from the first frame on.
    """
    rate = float(stream.average_rate or 0) or USUAL_RATE
    converter, follows, last = Converter(), True, None
    # PyAV leaks memory if demuxing is not closed.
    with contextlib.closing(container.demux(stream)) as packets:
        for packet in itertools.chain((packet for packet in packets if packet.size), [None]):
            try:
                frames = stream.codec_context.decode(packet)
            except av.InvalidDataError:
                if follows:
                    log.warning("%s: frames are lost, since a part does not decode", name)
                follows = False
                continue
            for frame in frames:
                if frame.pts is not None:  # frames from the end of decoding have no time base of their own
                    seconds = float(frame.pts * stream.time_base)
                else:
                    seconds = 0.0 if last is None else last + 1 / rate
                last = seconds
                if offset is None:
                    offset = seconds
                yield Frame(seconds - offset, lambda frame=frame: converter.rgb(frame), follows)  # type: ignore[misc]
                follows = True


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn what FFmpeg raises, and a DecodeError, into a UserError that names the source."""
    try:
        yield
    except av.ExitError:
        raise UserError(
            f"{name}: no data came in time: check the source, or give a longer --timeout"
        ) from None
    except av.FFmpegError as error:
        raise UserError(f"{name}: it cannot be read: {error.strerror}") from None
    except decode.DecodeError as error:
        raise UserError(f"{name}: {error}") from None
    except (ValueError, ArithmeticError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name}: it does not decode: {reason}") from None
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from None
