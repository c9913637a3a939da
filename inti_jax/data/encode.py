"""RGB frames to an H.264 file of intra frames."""

import io

import av
import numpy as np
from jaxtyping import UInt8

# Constant quantiser and a keyframe everywhere: how a frame is encoded depends on that frame alone, so the
# same frames in reverse order decode to the same pixels in reverse order.
_OPTIONS = {"preset": "ultrafast", "qp": "22", "g": "1", "threads": "1"}


def encode(frames: UInt8[np.ndarray, "T H W 3"], fps: int) -> bytes:
    """An MP4 file in which every frame is encoded on its own. H and W are even."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=_OPTIONS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p", threads=1)))
        container.mux(stream.encode(None))
    return file.getvalue()
