"""Decode encoded videos to RGB frames, exactly, on one thread.

A frame's index is its place in the order the decoder presents frames, starting at 0. Timestamps play no
part in it, so a video of variable frame rate is indexed like any other, and a packet that is empty, by which
some files say that the last frame stays, is no frame.

Frames are as displayed: turned and mirrored by the file's display matrix. Their pixels are those that are
stored: a pixel aspect ratio, which says that they are to be shown wider or narrower, is not applied.
"""

import dataclasses
import io
import itertools
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable

import av
import numpy as np
from jaxtyping import Int64, UInt8

from inti_jax.data.codec.damage import DoubtfulFrames
from inti_jax.data.codec.orientation import Converter
from inti_jax.data.codec.packets import find_needed
from inti_jax.errors import UserError

# Share of doubtful frames above which a video is rejected. Published datasets have videos with some, on which
# others train and evaluate as well; one that is more of it than not shows no more what its label says.
MOST_DOUBTFUL = 0.5

# Seconds by which a file that announces no frame count may end before the duration it announces.
_DURATION_SLACK = 1.0
# So many pixels of size are what being the file's default stream is worth, to `ffmpeg` and here.
_DEFAULT_PIXELS = 5_000_000
# Lists and session descriptions pass for videos and name others: files next to this one, or hosts.
_NOTHING_ELSE = {"protocol_whitelist": ""}
_AVI_INDEX_ENTRY = 16  # bytes
_WEBP_HEAD = 21  # bytes: RIFF, size, WEBP, VP8X, size, flags


class DecodeError(UserError):
    """A video that cannot be decoded as asked; the message is a one-line reason."""


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """Describe a video: number of frames, mean frames a second, size in pixels once turned as displayed.

    `doubtful` of its frames are damaged, or are not there though their place is (see `DoubtfulFrames`).
    """

    frames: int
    fps: float
    height: int
    width: int
    doubtful: int = 0


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


def validate(video: bytes, most_doubtful: float = MOST_DOUBTFUL) -> VideoInfo:
    """Decode the whole video and describe it.

    Raises DecodeError if it is no video, has no frame, fails to decode anywhere, ends before it should, or
    has a larger share of doubtful frames than `most_doubtful`.
    """
    return _decode_whole(video, (), most_doubtful)[0]


def check_opens(file: io.BufferedIOBase) -> None:
    """Raise DecodeError unless `file` opens as a video. Reads its head alone and decodes nothing."""
    with _opened(file):
        pass


def decode_and_validate(
    video: bytes, choose: Callable[[int], Int64[np.ndarray, " T"]]
) -> tuple[VideoInfo, dict[int, UInt8[np.ndarray, "H W 3"]]]:
    """Give what `validate` says of the video and, by index, its frames `choose(number of frames)`.

    Decodes once where each packet gives a frame, as nearly always. Only decoding tells that some do not: then
    the frames chosen are others, and take a second time.
    """
    with _opened(video) as (container, stream):
        packets = count_packets(container, stream)
    info, found = _decode_whole(video, choose(packets).tolist())
    if info.frames != packets:
        info, found = _decode_whole(video, choose(info.frames).tolist())
    return info, found


def decode_frames(
    video: bytes, indices: Int64[np.ndarray, " T"], total: int | None = None
) -> UInt8[np.ndarray, "T H W 3"]:
    """Give the frames at `indices`, in that order, repeats included.

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
    """Open the container and the video stream that the `ffmpeg` program would take, for one thread.

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
        stream = max(streams, key=_preference)
        if stream.codec_context is None:
            raise DecodeError("its codec is unknown")
        # Parallelism is over videos: more threads in each would only get in each other's way.
        stream.codec_context.thread_count = 1
        yield container, stream


def _preference(stream: av.VideoStream) -> int:
    """Rank a stream as `ffmpeg` does without `-map`: the largest, where none or several are the default."""
    if stream.codec_context is None:
        return -1
    default = bool(stream.disposition & av.stream.Disposition.default)
    return stream.codec_context.width * stream.codec_context.height + _DEFAULT_PIXELS * default


def count_packets(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """Count the stream's packets that hold something, reading the whole file."""
    return sum(packet.size > 0 for packet in container.demux(stream))


class WholeStream:
    """Decode a stream from the first frame to the last, and judge then whether it was all there."""

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream):
        self._container, self._stream = container, stream
        self._doubtful = DoubtfulFrames(container, stream)
        self._frames = self._packets = 0
        self._end = 0.0  # seconds at which the last packet of any stream ends
        self._numbered = 0  # an AVI file's packets, by the number of the last one
        # Before the first is read: AVI's reader adds to the index what it finds.
        self._indexed = len(stream.index_entries)

    def frames(self) -> Iterator[av.VideoFrame]:
        """Give the frames in the order of presentation. Passes on what FFmpeg raises."""
        demuxing: Any = self._container.demux()  # PyAV loses memory with one left in the middle
        with closing(demuxing):
            for packet in demuxing:
                if packet.size:
                    self._note(packet)
                    if packet.stream_index == self._stream.index:
                        yield from self._decode(packet)
        yield from self._decode(None)

    def _note(self, packet: av.Packet) -> None:
        if packet.pts is not None:
            self._end = max(self._end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        self._doubtful.add_packet(packet)
        if packet.stream_index == self._stream.index:
            self._packets += 1
            if packet.dts is not None:
                self._numbered = packet.dts + 1

    def _decode(self, packet: av.Packet | None) -> Iterator[av.VideoFrame]:
        for frame in self._stream.codec_context.decode(packet):
            self._frames += 1
            self._doubtful.add_frame(frame)
            yield frame

    def judge(self, most_doubtful: float) -> tuple[int, Fraction]:
        """Give the number of doubtful frames, and the mean rate, once all frames were given.

        Raises DecodeError where there was none, where some that are announced were not there, and where the
        share of doubtful ones is above `most_doubtful`.
        """
        if self._frames == 0:
            raise DecodeError("it has no video frame")
        flagged, lost = self._doubtful.count(self._seconds_missing())
        if flagged + lost > most_doubtful * (self._frames + lost):
            missing = f", {lost} of them missing" if lost else ""
            raise DecodeError(
                f"it is damaged: {flagged + lost} of its {self._frames + lost} frames are doubtful{missing}"
            )
        return flagged + lost, mean_rate(self._stream, self._packets)

    def _seconds_missing(self) -> float:
        """Give how much earlier than announced the file ends. Raises DecodeError where that is too much."""
        announced = self._stream.frames
        # Packets, not frames, are counted against the container's number: an edit list hides frames.
        if self._packets < announced and self._packets + self._empty_packets() < announced:
            raise DecodeError(f"it is truncated: {self._packets} of its {announced} frames are there")
        if announced or not self._container.duration:
            return 0.0
        duration = self._container.duration / av.time_base
        there = self._end - (self._container.start_time or 0) / av.time_base
        if there < duration - _DURATION_SLACK:
            raise DecodeError(f"it is truncated: {there:.1f} of its {duration:.1f} seconds are there")
        return duration - there

    def _empty_packets(self) -> int:
        """Count the packets that the file has and that hold nothing: the frame before stays for longer.

        MP4's index has them. AVI's reader passes over them, but they have numbers, which are the times of
        decoding; and where the index behind the packets has these and no others, none is missing.
        """
        if self._container.format.name != "avi":
            return sum(entry.size == 0 for entry in self._stream.index_entries)
        index_bytes = _AVI_INDEX_ENTRY * self._indexed
        if self._packets == self._indexed > 1 and self._doubtful.bytes_behind > index_bytes:
            return self._stream.frames - self._packets
        return self._numbered - self._packets


def mean_rate(stream: av.VideoStream, packets: int) -> Fraction:
    """Give the frames a second of a stream with so many packets that hold one; 0 where nothing says it."""
    rate = Fraction(stream.average_rate or 0)
    return rate * packets / stream.frames if packets < stream.frames else rate


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


def _decode_whole(
    video: bytes, wanted: Collection[int], most_doubtful: float = MOST_DOUBTFUL
) -> tuple[VideoInfo, dict[int, np.ndarray]]:
    """Decode as `validate`, and give the frames of `wanted` that there are."""
    found, needed = {}, set(wanted)
    size = (0, 0)
    with _opened(video) as (container, stream):
        whole, converter = WholeStream(container, stream), Converter()
        count = 0
        for frame in whole.frames():
            if count == 0:
                size = converter.size(frame)
            if count in needed:
                found[count] = converter.rgb(frame, size)
            count += 1
        doubtful, rate = whole.judge(most_doubtful)
        return VideoInfo(count, float(rate), *size, doubtful), found


def _decode_from_start(container, stream, wanted: list[int]) -> dict[int, np.ndarray]:
    found, needed = {}, set(wanted)
    index, size, converter = 0, None, Converter()
    decode = stream.codec_context.decode
    with closing(container.demux(stream)) as packets:  # PyAV loses memory with one left in the middle
        # To PyAV's own loop a packet that is empty is the end.
        for packet in itertools.chain((packet for packet in packets if packet.size), [None]):
            for frame in decode(packet):
                size = size or converter.size(frame)
                if index in needed:
                    found[index] = converter.rgb(frame, size)
                    if index == wanted[-1]:
                        return found
                index += 1
    raise DecodeError(f"it ends before frame {wanted[-1]}")


def _decode_needed(container, stream, wanted: list[int], total: int) -> dict[int, np.ndarray] | None:
    """Decode as `_decode_from_start`, without what no wanted frame needs; None if that cannot be done."""
    needed = find_needed(container, stream, wanted, total)
    if needed is None:
        return None
    found, converter = {}, Converter()
    decoder = stream.codec_context
    size = decoder.height, decoder.width
    for run in needed.runs:
        for packet in [*run, None]:
            for frame in decoder.decode(packet):
                if (frame.height, frame.width) != size:
                    return None
                if frame.pts in needed.indices:
                    found[needed.indices[frame.pts]] = converter.rgb(frame)
        decoder.flush_buffers()
    if len(found) < len(wanted) or len({image.shape for image in found.values()}) > 1:
        return None
    return found
