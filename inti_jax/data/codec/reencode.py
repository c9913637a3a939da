"""Encode videos anew: smaller, and quick to decode a few frames of.

The settings were chosen by measurement, on four real videos of 240 to 256 lines: CPU time to decode 8 frames
at stride 16, and the size. With a keyframe at least every 24 frames, without CABAC and the loop filter, and
with B-frames that nothing depends on, that takes 10.1 ms where x264's usual settings take 39, in 1.19 times
the bytes. Every 16 frames: 9.8 ms and 1.25 times; every 32: 10.3 ms and 1.17; every 250: 14.0 ms and 1.10.
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
    "threads": "1",  # parallelism is over videos
    # With `mbtree`, the same frames were seen to give other bytes now and then.
    "x264-params": "b-pyramid=0:mbtree=0",
}
# Of a video that does not say how many frames a second it has.
_UNKNOWN_RATE = Fraction(25)
# What MP4 can express of a frame rate, with room to spare.
_LARGEST_DENOMINATOR = 65_535
# Pixel aspect ratios beyond these are no camera's, and what H.264 can express of the others.
_WIDEST_PIXEL, _PIXEL_DENOMINATOR = 100, 600


def reencode(
    video: bytes, short_side: int, most_doubtful: float = decode.MOST_DOUBTFUL
) -> tuple[bytes, decode.VideoInfo]:
    """Encode the video anew as an MP4 file of H.264 without sound, and describe it.

    It has the same frames in the same order, turned and mirrored as displayed, at the same mean rate. The
    shorter side becomes `short_side` pixels (an even number) where it is longer, the other follows, both
    even. A pixel aspect ratio is not applied: the new file has the one with which it is shown as the old one
    is. The same video gives the same bytes. `doubtful` is the given video's.

    Raises DecodeError where `decode.validate` would, or if it cannot be encoded.
    """
    try:
        encoded, frames, doubtful = _encode(video, short_side, most_doubtful)
    except (av.FFmpegError, ValueError, ArithmeticError, MemoryError) as error:
        decode.validate(video, most_doubtful)  # has the reason, mostly
        reason = str(error).partition("\n")[0]
        raise decode.DecodeError(f"it cannot be encoded anew: {reason}") from None
    info = decode.validate(encoded)
    if info.frames != frames:
        raise decode.DecodeError(f"encoded anew it has {info.frames} of its {frames} frames")
    return encoded, dataclasses.replace(info, doubtful=doubtful)


def _encode(video: bytes, short_side: int, most_doubtful: float) -> tuple[bytes, int, int]:
    """Give the encoded video, its number of frames, and how many of those given are doubtful."""
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
            # Through RGB, by the conversion that decoding ends with: its colours stay what they were.
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
    """Give the width of a pixel over its height that keeps the picture's shape at another size in pixels.

    None where the stream's pixels are square, as those of nearly all are, or nothing says what they are.
    """
    shape = stream.sample_aspect_ratio
    if not shape or shape == 1 or not 1 / _WIDEST_PIXEL <= shape <= _WIDEST_PIXEL:
        return None
    shape = 1 / shape if turned else shape
    scaled = shape * Fraction(before[1], before[0]) / Fraction(after[1], after[0])
    return scaled.limit_denominator(_PIXEL_DENOMINATOR)
