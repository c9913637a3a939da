"""Encode RGB frames as an H.264 file of intra frames."""

import io
from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np
from jaxtyping import UInt8

# With a constant quantiser and only keyframes, the encoding of a frame depends on that frame alone. So the
# same frames in reverse order decode to the same pixels in reverse order.
_OPTIONS = {"preset": "ultrafast", "qp": "22", "g": "1", "threads": "1"}


def encode(frames: Iterable[UInt8[np.ndarray, "H W 3"]], fps: int | Fraction) -> bytes:
    """Encode frames of one size as an MP4 file of intra frames.

    H and W are even. Takes one frame at a time from `frames`. Passes on what FFmpeg raises for a size that it
    cannot encode.
    """
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=_OPTIONS)
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p", threads=1)))
        container.mux(stream.encode(None))
    return file.getvalue()
