"""Encode videos anew, smaller and with settings from which a few frames decode quickly.

The settings were chosen by measurement on four real videos of 240 to 256 lines: the CPU time to decode 8
frames at stride 16, and the size. They set a keyframe at least every 24 frames, no CABAC, no loop filter, and
B-frames that nothing depends on. That takes 10.1 ms, and x264's usual settings take 39; the file has 1.19
times their bytes. Other keyframe intervals: 16 frames take 9.8 ms and 1.25 times the bytes, 32 take 10.3 ms
and 1.17, 250 take 14.0 ms and 1.10.
"""

import dataclasses
import io
from fractions import Fraction

import av
import numpy as np

from inti_jax.data.codec import decode
from inti_jax.data.codec.orientation import Converter

_OPTIONS = {
    "preset": "veryfast",
    "tune": "fastdecode",
    "g": "24",
    "bf": "3",
    "crf": "23",
    "threads": "1",  # videos are encoded in parallel
    # With `mbtree`, the same frames occasionally gave different bytes.
    "x264-params": "b-pyramid=0:mbtree=0",
}
# Frames a second of a video that does not state its rate.
_UNKNOWN_RATE = Fraction(25)
# Bound on the denominator of a frame rate, well within what MP4 can store.
_LARGEST_DENOMINATOR = 65_535
# Pixel aspect ratios above this, or below its inverse, come from no camera and are ignored. The denominator
# is one that H.264 can store.
_WIDEST_PIXEL, _PIXEL_DENOMINATOR = 100, 600


def reencode(
    video: bytes, short_side: int, most_doubtful: float = decode.MOST_DOUBTFUL
) -> tuple[bytes, decode.VideoInfo]:
    """Encode the video anew as H.264 in MP4, without sound, and return it with its facts.

    It has the same frames in the same order, turned and mirrored as displayed, at the same mean rate. If the
    shorter side is longer than `short_side` pixels (an even number), it is scaled down to that, and the other
    side in proportion; both become even. A pixel aspect ratio is not applied to the pixels: the new file has
    the ratio with which it is shown in the old one's shape. The same video gives the same bytes. `doubtful`
    counts the frames of the original.

    Raises DecodeError where `decode.validate` would, or if the video cannot be encoded.
    """
    try:
        encoded, frames, doubtful = _encode(video, short_side, most_doubtful)
    except (av.FFmpegError, ValueError, ArithmeticError, MemoryError) as error:
        decode.validate(video, most_doubtful)  # mostly raises an error that has the reason
        reason = str(error).partition("\n")[0]
        raise decode.DecodeError(f"it cannot be re-encoded: {reason}") from None
    info = decode.validate(encoded)
    if info.frames != frames:
        raise decode.DecodeError(f"re-encoded, it has {info.frames} of its {frames} frames")
    return encoded, dataclasses.replace(info, doubtful=doubtful)


def _encode(video: bytes, short_side: int, most_doubtful: float) -> tuple[bytes, int, int]:
    """Return the encoded video, its number of frames, and the number of doubtful frames in the original."""
    with decode.opened(video) as (source, stream):
        packets = decode.count_packets(source, stream) if stream.frames else 0
        rate = decode.mean_rate(stream, packets) or _UNKNOWN_RATE
    file = io.BytesIO()
    with decode.opened(video) as (source, stream), av.open(file, "w", format="mp4") as target:
        rate = rate.limit_denominator(_LARGEST_DENOMINATOR)
        output = target.add_stream("libx264", rate=rate, options=_OPTIONS)
        output.pix_fmt = "yuv420p"
        whole, converter = decode.WholeStream(source, stream), Converter()
        frames = 0
        for frame in whole.frames():
            if frames == 0:
                before = converter.size(frame)
                size = _target_size(*before, short_side)
                output.height, output.width = size
                if shape := _pixel_shape(stream, before, size, turned=before[0] != frame.height):
                    output.codec_context.sample_aspect_ratio = shape
            # Convert through RGB, as `decode` does, so that the colours stay the same.
            image = np.ascontiguousarray(converter.rgb(frame, size, "BICUBIC"), np.uint8)
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture = picture.reformat(format="yuv420p", threads=1)
            picture.pts, picture.time_base = frames, 1 / rate
            target.mux(output.encode(picture))
            frames += 1
        doubtful, _ = whole.judge(most_doubtful)
        target.mux(output.encode(None))
    return file.getvalue(), frames, doubtful


def _target_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    shorter = min(height, width)
    if shorter <= short_side:
        height, width = (length // 2 * 2 for length in (height, width))
    else:  # to the nearest even number
        height, width = (2 * ((length * short_side + shorter) // (2 * shorter)) for length in (height, width))
    return max(2, height), max(2, width)


def _pixel_shape(
    stream: av.VideoStream, before: tuple[int, int], after: tuple[int, int], *, turned: bool
) -> Fraction | None:
    """Return the pixel aspect ratio (width over height) that keeps the picture's shape at the new size.

    None if the stream's pixels are square, as they nearly always are, or if their shape is unknown.
    """
    shape = stream.sample_aspect_ratio
    if not shape or shape == 1 or not 1 / _WIDEST_PIXEL <= shape <= _WIDEST_PIXEL:
        return None
    shape = 1 / shape if turned else shape
    scaled = shape * Fraction(before[1], before[0]) / Fraction(after[1], after[0])
    return scaled.limit_denominator(_PIXEL_DENOMINATOR)
