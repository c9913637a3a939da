"""Encoded video bytes to RGB frames, exactly, on one thread.

A frame's index is its place in the order the decoder presents frames, starting at 0. Timestamps play no
part in it, so a video of variable frame rate is indexed like any other.
"""

import dataclasses
import io
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from typing import Protocol, runtime_checkable

import av
import numpy as np
from jaxtyping import Int64, UInt8

from inti_jax.data.packets import find_needed
from inti_jax.errors import UserError

# Seconds by which a file that announces no frame count may end before the duration it announces.
_DURATION_SLACK = 1.0
# Lists and session descriptions pass for videos and name others: files next to this one, or hosts.
_NOTHING_ELSE = {"protocol_whitelist": ""}
_WEBP_HEAD = 21  # bytes: RIFF, size, WEBP, VP8X, size, flags


class DecodeError(UserError):
    """A video that cannot be decoded as asked; the message is a one-line reason."""


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What a video holds: its number of frames, frames a second, and size in pixels as displayed."""

    frames: int
    fps: float
    height: int
    width: int


@runtime_checkable
class Decoder(Protocol):
    """Encoded video to the frames of a clip: `decode_frames`, or another library in its place.

    Called from several threads, and sent to worker processes: a function of a module, or what pickles alike.
    """

    def __call__(
        self, video: bytes, indices: Int64[np.ndarray, " T"], total: int | None = None
    ) -> UInt8[np.ndarray, "T H W 3"]:
        """The frames at `indices` of a video that has `total`. Raises DecodeError."""
        ...


def validate(video: bytes) -> VideoInfo:
    """Decodes the whole video and describes it.

    Raises DecodeError if it is no video, has no frame, fails to decode anywhere, or ends before it should.
    """
    return _decode_whole(video, ())[0]


def check_opens(file: io.BufferedIOBase) -> None:
    """Raise DecodeError unless `file` opens as a video. Reads its head alone and decodes nothing."""
    with _opened(file):
        pass


def decode_and_validate(
    video: bytes, choose: Callable[[int], Int64[np.ndarray, " T"]]
) -> tuple[VideoInfo, dict[int, UInt8[np.ndarray, "H W 3"]]]:
    """What `validate` says of the video and, by index, its frames `choose(number of frames)`.

    Decodes once where each packet gives a frame, as nearly always. Only decoding tells that some do not: then
    the frames chosen are others, and take a second time.
    """
    with _opened(video) as (container, stream):
        packets = sum(packet.size > 0 for packet in container.demux(stream))
    info, found = _decode_whole(video, choose(packets).tolist())
    if info.frames != packets:
        info, found = _decode_whole(video, choose(info.frames).tolist())
    return info, found


def decode_frames(
    video: bytes, indices: Int64[np.ndarray, " T"], total: int | None = None
) -> UInt8[np.ndarray, "T H W 3"]:
    """The frames at `indices`, in that order, repeats included.

    Decodes no further than the last one. `total`, the video's number of frames as `validate` counted them,
    permits to decode only what these frames depend on; without it decoding starts at the first frame.
    Raises DecodeError if the video is damaged in what is decoded, or does not have a wanted frame.
    """
    wanted = sorted(set(indices.tolist()))
    if not wanted or wanted[0] < 0:
        raise DecodeError(f"frame indices {indices.tolist()} are not all of a video's")
    found = None
    if total is not None:
        with _opened(video) as (container, stream):
            found = _decode_needed(container, stream, wanted, total)
    if found is None:
        with _opened(video) as (container, stream):
            found = _decode_from_start(container, stream, wanted)
    return np.stack([found[index] for index in indices.tolist()])


@contextmanager
def opened(video: bytes | io.BufferedIOBase) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its first video stream, to be decoded on one thread.

    Raises DecodeError where there is none, and passes on what FFmpeg raises.
    """
    file = io.BytesIO(video) if isinstance(video, bytes) else video
    head = file.read(_WEBP_HEAD)
    if not head:
        raise DecodeError("the file is empty")
    file.seek(0)
    with av.open(file, "r", metadata_errors="replace", container_options=_NOTHING_ELSE) as container:
        if container.format.name.endswith("_pipe"):
            if _is_animated_webp(head):
                raise DecodeError("it is an animated WebP, which FFmpeg cannot decode: save it as MP4 or GIF")
            raise DecodeError("it is a still image")
        # An audio file's cover is a video stream too.
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            raise DecodeError("it has no video stream")
        stream = streams[0]
        if stream.codec_context is None:
            raise DecodeError("its codec is unknown")
        # Parallelism is over videos: more threads in each would only get in each other's way.
        stream.codec_context.thread_count = 1
        yield container, stream


@contextmanager
def _opened(video: bytes | io.BufferedIOBase) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """As `opened`; every failure inside becomes a DecodeError."""
    try:
        with opened(video) as found:
            yield found
    except av.FFmpegError as error:
        raise DecodeError(f"it does not decode: {error.strerror}") from None
    except (
        ValueError,
        ArithmeticError,
        MemoryError,
    ) as error:  # sizes and formats FFmpeg passes on but nobody can convert
        reason = str(error).partition("\n")[0]
        raise DecodeError(f"it does not decode: {reason}") from None


def _is_animated_webp(head: bytes) -> bool:
    """Read the animation flag of an extended WebP file."""
    extended = head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) == _WEBP_HEAD
    return extended and bool(head[20] & 0x02)


def _decode_whole(video: bytes, wanted: Collection[int]) -> tuple[VideoInfo, dict[int, np.ndarray]]:
    """As `validate`, and the frames of `wanted` that there are."""
    found, needed = {}, set(wanted)
    with _opened(video) as (container, stream):
        frames = packets = 0
        end = 0.0
        for packet in container.demux():
            if packet.size and packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != stream.index:
                continue
            packets += packet.size > 0
            for frame in stream.decode(packet):
                if frames == 0:
                    size = frame.height, frame.width
                    height, width = _displayed_size(frame)
                if frames in needed:
                    found[frames] = _rgb(frame, size)
                frames += 1
        if frames == 0:
            raise DecodeError("it has no video frame")
        # Packets, not frames, are counted against the container's number: an edit list hides frames.
        if packets < stream.frames:
            raise DecodeError(f"it is truncated: {packets} of its {stream.frames} frames are there")
        if not stream.frames and container.duration:
            duration = container.duration / av.time_base
            start = (container.start_time or 0) / av.time_base
            if end - start < duration - _DURATION_SLACK:
                raise DecodeError(
                    f"it is truncated: {end - start:.1f} of its {duration:.1f} seconds are there"
                )
        return VideoInfo(frames, float(stream.average_rate or 0), height, width), found


def _decode_from_start(container, stream, wanted: list[int]) -> dict[int, np.ndarray]:
    found, needed = {}, set(wanted)
    size = None
    with closing(container.decode(stream)) as frames:  # PyAV loses memory with one left in the middle
        for index, frame in enumerate(frames):
            size = size or (frame.height, frame.width)
            if index in needed:
                found[index] = _rgb(frame, size)
                if index == wanted[-1]:
                    return found
    raise DecodeError(f"it ends before frame {wanted[-1]}")


def _decode_needed(container, stream, wanted: list[int], total: int) -> dict[int, np.ndarray] | None:
    """As `_decode_from_start`, but passing over what no wanted frame needs; None if that cannot be done."""
    needed = find_needed(container, stream, wanted, total)
    if needed is None:
        return None
    found = {}
    decoder = stream.codec_context
    size = decoder.height, decoder.width
    for run in needed.runs:
        for packet in [*run, None]:
            for frame in decoder.decode(packet):
                if (frame.height, frame.width) != size:
                    return None
                if frame.pts in needed.indices:
                    found[needed.indices[frame.pts]] = _rgb(frame, size)
        decoder.flush_buffers()
    return found if len(found) == len(wanted) else None


def _rgb(frame: av.VideoFrame, size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """The frame as displayed; brought to `size` (height, width) where a video changes it on the way."""
    image = frame.to_ndarray(format="rgb24", height=size[0], width=size[1], threads=1)
    return np.rot90(image, _quarter_turns(frame)) if frame.rotation else image


def _displayed_size(frame: av.VideoFrame) -> tuple[int, int]:
    turned = _quarter_turns(frame) % 2
    return (frame.width, frame.height) if turned else (frame.height, frame.width)


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counter-clockwise quarter turns that display the frame upright."""
    return round(frame.rotation / 90)
