"""Decode encoded videos to RGB frames, frame-exact, on one thread.

A frame's index is its position in presentation order, counted from 0. Timestamps do not matter for it, so a
video with a variable frame rate is indexed like any other. An empty packet, by which some files repeat the
last frame, is not a frame.

Frames are as displayed: turned and mirrored by the file's display matrix. Pixels are as stored: a pixel
aspect ratio, which asks a player to show them wider or narrower, is not applied.
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

# Share of doubtful frames above which a video is rejected. Published datasets have videos with some doubtful
# frames, and other work trains and evaluates on those too. A video that is mostly doubtful no longer shows
# its label.
MOST_DOUBTFUL = 0.5

# Seconds by which a file that announces no frame count may end before the duration it announces.
_DURATION_SLACK = 1.0
# Pixels added to the size of a default stream when the largest stream is chosen, as in `ffmpeg`.
_DEFAULT_PIXELS = 5_000_000
# Names in a file need not be UTF-8. PyAV takes them so always from version 19 on.
ANY_NAMES: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
# Allow FFmpeg no protocol: playlists and session descriptions open as videos, and name other files or hosts.
NOTHING_ELSE = {"protocol_whitelist": ""}
_AVI_INDEX_ENTRY = 16  # bytes
_WEBP_HEAD = 21  # bytes: RIFF, size, WEBP, VP8X, size, flags


class DecodeError(UserError):
    """Error for a video that cannot be decoded as asked; the message is a one-line reason."""


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """Facts of a video: number of frames, mean frames a second, and size in pixels as displayed.

    `doubtful` is its number of damaged or missing frames (see `DoubtfulFrames`).
    """

    frames: int
    fps: float
    height: int
    width: int
    doubtful: int = 0


@runtime_checkable
class Decoder(Protocol):
    """Interface of a function that decodes a clip's frames: `decode_frames`, or another library's decoder.

    It is called from several threads and sent to worker processes, so it has to be picklable, as a
    module-level function is.
    """

    def __call__(
        self, video: bytes, indices: Int64[np.ndarray, " T"], total: int | None = None
    ) -> UInt8[np.ndarray, "T H W 3"]:
        """Decode the frames at `indices` of a video with `total` frames. Raises DecodeError."""
        ...


def validate(video: bytes, most_doubtful: float = MOST_DOUBTFUL) -> VideoInfo:
    """Decode the whole video and return its facts.

    Raises DecodeError if it is not a video, has no frame, fails to decode anywhere, ends early, or has a
    larger share of doubtful frames than `most_doubtful`.
    """
    return _decode_whole(video, (), most_doubtful)[0]


def check_opens(file: io.BufferedIOBase) -> None:
    """Raise DecodeError unless `file` opens as a video; read only its head and decode nothing."""
    with _opened(file):
        pass


def announced_size(file: io.BufferedIOBase) -> tuple[int, int]:
    """Read the height and width that a video's head announces, as stored; decode no more than FFmpeg must.

    Raises DecodeError unless `file` opens as a video.
    """
    with _opened(file) as (_, stream):
        return stream.codec_context.height, stream.codec_context.width


def decode_and_validate(
    video: bytes, choose: Callable[[int], Int64[np.ndarray, " T"]]
) -> tuple[VideoInfo, dict[int, UInt8[np.ndarray, "H W 3"]]]:
    """Validate the video and return its facts and, by index, the frames at `choose(number of frames)`.

    Decodes once if each packet gives a frame, which is nearly always so. If decoding shows that some packets
    give none, the frames are chosen anew and decoded in a second pass. Raises DecodeError as `validate` does.
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
    """Decode the frames at `indices`, in that order, repeats included.

    Decodes no further than the last of them. With `total`, the video's number of frames as `validate` counted
    them, only the packets that these frames depend on are decoded where possible. Without it, decoding starts
    at the first frame. Raises DecodeError if a part that is decoded is damaged, or if the video lacks a
    frame.
    """
    wanted = sorted(set(indices.tolist()))
    if not wanted or wanted[0] < 0:
        raise DecodeError(f"frame indices {indices.tolist()} should be at least one, none negative")
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
    """Open the container and the video stream that the `ffmpeg` program would choose, for one thread.

    Raises DecodeError if there is no video stream, and passes on what FFmpeg raises.
    """
    file = io.BytesIO(video) if isinstance(video, bytes) else video
    head = file.read(_WEBP_HEAD)
    if not head:
        raise DecodeError("the file is empty")
    file.seek(0)
    with av.open(file, "r", container_options=NOTHING_ELSE, **ANY_NAMES) as container:
        if container.format.name.endswith("_pipe"):
            if _is_animated_webp(head):
                raise DecodeError("it is an animated WebP, which FFmpeg cannot decode: save it as MP4 or GIF")
            raise DecodeError("it is a still image")
        # The cover picture of an audio file is a video stream too.
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            raise DecodeError("it has no video stream")
        stream = max(streams, key=_preference)
        if stream.codec_context is None:
            raise DecodeError("its codec is unknown")
        # Videos are decoded in parallel, so more threads for each video would only compete.
        stream.codec_context.thread_count = 1
        yield container, stream


def _preference(stream: av.VideoStream) -> int:
    """Rank a stream as `ffmpeg` does without `-map`: by its pixels, with a bonus for default streams."""
    if stream.codec_context is None:
        return -1
    default = bool(stream.disposition & av.stream.Disposition.default)
    return stream.codec_context.width * stream.codec_context.height + _DEFAULT_PIXELS * default


def count_packets(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """Count the stream's packets that are not empty; read the whole file for it."""
    return sum(packet.size > 0 for packet in container.demux(stream))


class WholeStream:
    """Decoder of a whole stream that afterwards checks that the stream was complete."""

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream):
        self._container, self._stream = container, stream
        self._doubtful = DoubtfulFrames(container, stream)
        self._frames = self._packets = 0
        self._end = 0.0  # seconds at which the last packet of any stream ends
        self._numbered = 0  # packets of an AVI file, by the number of the last one
        # Taken before the first packet is read, because AVI's demuxer adds the packets that it finds to the
        # index.
        self._indexed = len(stream.index_entries)

    def frames(self) -> Iterator[av.VideoFrame]:
        """Yield the frames in presentation order. Passes on what FFmpeg raises."""
        demuxing: Any = self._container.demux()  # PyAV leaks memory if it is not closed
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
        """Return the number of doubtful frames and the mean frame rate; call it after `frames` has ended.

        Raises DecodeError if there was no frame, if announced frames were missing, or if the share of
        doubtful frames is above `most_doubtful`.
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
        """Return the seconds by which the file ends earlier than it announces.

        Raises DecodeError if the file lacks announced frames or ends more than `_DURATION_SLACK` seconds
        early.
        """
        announced = self._stream.frames
        # The container announces packets: an edit list may hide some of their frames.
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
        """Count the file's empty packets, each of which repeats the frame before it.

        MP4 lists them in its index. AVI's demuxer skips them, but numbers them: the number is the decoding
        time. If the index that follows an AVI file's packets lists exactly the packets that were read, none
        is missing: all other announced ones are empty.
        """
        if self._container.format.name != "avi":
            return sum(entry.size == 0 for entry in self._stream.index_entries)
        index_bytes = _AVI_INDEX_ENTRY * self._indexed
        if self._packets == self._indexed > 1 and self._doubtful.bytes_behind > index_bytes:
            return self._stream.frames - self._packets
        return self._numbered - self._packets


def mean_rate(stream: av.VideoStream, packets: int) -> Fraction:
    """Return the mean frames a second of a stream with `packets` packets that hold a frame; 0 if unknown."""
    rate = Fraction(stream.average_rate or 0)
    return rate * packets / stream.frames if packets < stream.frames else rate


@contextmanager
def _opened(video: bytes | io.BufferedIOBase) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a video as `opened` does, and turn every failure inside into a DecodeError."""
    try:
        with opened(video) as found:
            yield found
    except av.FFmpegError as error:
        raise DecodeError(f"it does not decode: {error.strerror}") from None
    except (
        ValueError,
        ArithmeticError,
        MemoryError,
    ) as error:  # sizes and formats that FFmpeg accepts but that cannot be converted
        reason = str(error).partition("\n")[0]
        raise DecodeError(f"it does not decode: {reason}") from None


def _is_animated_webp(head: bytes) -> bool:
    """Read the animation flag of an extended WebP file."""
    extended = head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) == _WEBP_HEAD
    return extended and bool(head[20] & 0x02)


def _decode_whole(
    video: bytes, wanted: Collection[int], most_doubtful: float = MOST_DOUBTFUL
) -> tuple[VideoInfo, dict[int, np.ndarray]]:
    """Validate as `validate` does, and return the frames of `wanted` that exist, by index."""
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
    with closing(container.demux(stream)) as packets:  # PyAV leaks memory if it is not closed
        # PyAV's own decoding loop takes an empty packet for the end of the stream, so leave empty ones out.
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
    """Decode only the packets that the wanted frames depend on; return None if that is not possible."""
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
