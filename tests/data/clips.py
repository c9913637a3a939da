"""Small real videos for tests, made in memory."""

import contextlib
import io
import os
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

_BITS = 6  # that `numbered` shows


def moving_square(frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames [T, H, W, 3] that all differ: a square crosses a noisy ground, and the brightness ramps."""
    rng = np.random.default_rng(frames * 10_000 + height * 100 + width)
    ground = rng.integers(0, 120, (height, width, 3))
    video = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        frame = ground + 100 * t // max(frames, 1)
        left = (3 * t) % (width - 8)
        frame[height // 4 : height // 4 + 12, left : left + 8] = (250, 40, 40)
        video[t] = frame
    return video


def write_classes(directory: Path | str) -> None:
    """Write a folder of four small videos for each of two classes, `clap` and `wave`."""
    for number, label in enumerate(("clap", "wave")):
        folder = Path(directory, label)
        folder.mkdir(parents=True)
        for index, name in enumerate("abcd"):
            (folder / f"{name}.mp4").write_bytes(encode(moving_square(16 + 2 * index + number, 40, 48)))


def numbered(frames: int, height: int, width: int) -> np.ndarray:
    """Frames that show their number: the bits, as dark and bright columns, on a noisy ground."""
    video = np.random.default_rng(0).integers(0, 60, (frames, height, width, 3), np.uint8)
    for number in range(frames):
        for bit in range(_BITS):
            if number >> bit & 1:
                video[number, :, width * bit // _BITS : width * (bit + 1) // _BITS] += 190
    return video


def numbers(video: np.ndarray) -> list[int]:
    """Read the numbers that the frames of `numbered` show."""
    width = video.shape[2]
    middles = [width * (2 * bit + 1) // (2 * _BITS) for bit in range(_BITS)]
    bright = video[:, :, middles].mean((1, 3)) > 125
    return (bright << np.arange(_BITS)).sum(1).tolist()


@contextlib.contextmanager
def own_priority() -> Iterator[None]:
    """Give the thread its priority back: SVT-AV1 makes its caller a real-time thread where it may."""
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameter)


def encode(
    video: np.ndarray,
    *,
    codec: str = "libx264",
    container: str = "mp4",
    gop: int = 12,
    b_frames: int = 2,
    fps: int = 25,
    times: list[int] | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    audio: bool = False,
) -> bytes:
    """The video as a file. `times` are presentation times in units of 1 / fps (default 0, 1, 2...)."""
    with own_priority(), tempfile.TemporaryDirectory() as directory:  # `faststart` opens its output twice
        path = Path(directory, "video")
        with av.open(str(path), "w", format=container, options=muxer or {}) as output:
            # With x264's `mbtree`, the same frames give other bytes now and then.
            steady = {"x264-params": "mbtree=0"} if codec == "libx264" else {}
            stream = output.add_stream(codec, rate=fps, options=steady | (options or {}))
            stream.height, stream.width = video.shape[1:3]
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.gop_size = gop
            stream.codec_context.max_b_frames = b_frames
            stream.codec_context.thread_count = 1
            sound = output.add_stream("aac", rate=16000, layout="mono") if audio else None
            for t, frame in enumerate(video):
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                if times is not None:
                    picture.pts, picture.time_base = times[t], Fraction(1, fps)
                output.mux(stream.encode(picture.reformat(format=stream.pix_fmt, threads=1)))
            output.mux(stream.encode(None))
            if sound is not None:
                _add_silence(output, sound, seconds=1)
        return path.read_bytes()


def sound_only() -> bytes:
    """An MP4 file without video."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        _add_silence(output, output.add_stream("aac", rate=16000, layout="mono"), seconds=1)
    return file.getvalue()


def no_frames() -> bytes:
    """An MP4 file with a video stream and nothing in it."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        output.start_encoding()
    return file.getvalue()


def decode_all(video: bytes) -> np.ndarray:
    """Every frame [T, H, W, 3], in the order the decoder gives them, by the plainest loop there is."""
    with av.open(io.BytesIO(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24", threads=1) for frame in container.decode(video=0)])


def damaged(video: bytes, numbers: Collection[int], keep: int = 0) -> bytes:
    """The file with the packets of these numbers, in decoding order, overwritten after their first bytes."""
    spoilt = bytearray(video)
    with av.open(io.BytesIO(video)) as container:
        for number, packet in enumerate(container.demux(video=0)):
            if number in numbers:
                start = video.index(bytes(packet))
                spoilt[start + keep : start + packet.size] = b"\xff" * (packet.size - keep)
    return bytes(spoilt)


def turned(video: bytes, quarter_turns: int) -> bytes:
    """An MP4 file's bytes with the display matrix of its track set to clockwise quarter turns."""
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns % 4]
    return with_matrix(video, cos, sin, -sin, cos)


def with_matrix(video: bytes, a: float, b: float, c: float, d: float) -> bytes:
    """An MP4 file's bytes with a display matrix that shows the pixel at (x, y) at (a x + c y, b x + d y)."""
    matrix = np.array([a, b, 0, c, d, 0, 0, 0, 1])
    fixed = (matrix * np.array([1 << 16, 1 << 16, 1 << 30] * 3)).round().astype(">i4").tobytes()
    start = video.index(b"tkhd") + 4 + 40  # version 0 of the box: the matrix is 40 bytes into its body
    return video[:start] + fixed + video[start + 36 :]


def several_streams(
    streams: Sequence[tuple[np.ndarray, Disposition]], *, container: str, codec: str = "libx264"
) -> bytes:
    """A file with a video stream for each pair of frames and disposition."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        outputs = []
        for frames, disposition in streams:
            stream = output.add_stream("mjpeg" if disposition & Disposition.attached_pic else codec, rate=25)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuvj420p" if stream.codec_context.name == "mjpeg" else "yuv420p"
            stream.codec_context.max_b_frames = 0
            stream.disposition = disposition
            outputs.append(stream)
        for stream, (frames, _) in zip(outputs, streams, strict=True):
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                output.mux(stream.encode(picture.reformat(format=stream.pix_fmt, threads=1)))
            output.mux(stream.encode(None))
    return file.getvalue()


def by_ffmpeg(video: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The frames, of `shape` each, that the `ffmpeg` program shows without being told anything."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "video")
        path.write_bytes(video)
        how = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-vsync", "passthrough", "-"]
        done = subprocess.run(
            ["ffmpeg", "-v", "error", "-i", str(path), *how], capture_output=True, check=True, timeout=60
        )
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, *shape)


def _add_silence(output: av.container.OutputContainer, stream: av.AudioStream, *, seconds: int) -> None:
    samples = np.zeros((1, 16000 * seconds), np.float32)
    for start in range(0, samples.shape[1], 1024):
        frame = av.AudioFrame.from_ndarray(samples[:, start : start + 1024], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, start
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))
