"""Turn and mirror decoded frames as the file's display matrix says.

The four quarter turns, mirrored or not, are exact, as in the `ffmpeg` program. Any other angle is rounded to
the nearest quarter turn; `ffmpeg` would turn the picture within its frame and leave black corners. Scales and
shears are ignored, as in `ffmpeg`.
"""

import struct
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

# A display matrix: nine numbers in rows of three. The first two of the first two rows turn and mirror.
_MATRIX = struct.Struct("=9i")


class Orientation(NamedTuple):
    """Transformation of a decoded frame into the displayed one: a transposition, then flips."""

    transposed: bool = False
    upside_down: bool = False
    mirrored: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> "Orientation":
        """Read the orientation from the frame's display matrix; without one, a frame is shown as stored."""
        # Reading a frame's side data makes a reference cycle between the two, which would keep the frame's
        # memory until the garbage collector runs. So read the side data of a tiny copy.
        tiny = VideoReformatter().reformat(frame, 8, 8, "rgb24", interpolation="POINT", threads=1)
        try:
            side_data: Any = tiny.side_data  # its type declaration has the wrong keys
            matrix = side_data.get("DISPLAYMATRIX")
        except ValueError:
            # PyAV gives no side data at all if it does not know the kind of one entry (EXIF, 3D views). The
            # angle is still in `frame.rotation`, but not whether the frame is mirrored.
            quarter_turn = round(frame.rotation / 90) % 4  # counter-clockwise
            cos, sin = [(1, 0), (0, -1), (-1, 0), (0, 1)][quarter_turn]
            return cls.of_matrix(cos, sin, -sin, cos)
        if matrix is None:
            return cls()
        a, b, _, c, d, *_ = _MATRIX.unpack_from(matrix)
        return cls.of_matrix(a, b, c, d)

    @classmethod
    def of_matrix(cls, a: int, b: int, c: int, d: int) -> "Orientation":
        """Return the orientation that displays the pixel at (x, y) at (a x + c y, b x + d y), up to a shift.

        x is to the right and y downwards. A singular matrix, which would make the picture a line, is ignored.
        """
        if a * d == b * c:
            return cls()
        if abs(b) > abs(a):
            return cls(transposed=True, upside_down=b < 0, mirrored=c < 0)
        return cls(upside_down=d < 0, mirrored=a < 0)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Convert a decoded frame's height and width to the displayed ones, or the displayed ones back."""
        return (width, height) if self.transposed else (height, width)

    def apply(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H2 W2 3"]:
        """Return the decoded frame as displayed: a view of its pixels."""
        if self.transposed:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1]


class Converter:
    """Converter of the frames of one stream to RGB as displayed."""

    def __init__(self) -> None:
        self._rotation: int | None = None
        self._orientation = Orientation()

    def size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Return the height and width of the frame as displayed."""
        return self._orientation_of(frame).size(frame.height, frame.width)

    def rgb(
        self, frame: av.VideoFrame, size: tuple[int, int] | None = None, interpolation: str | None = None
    ) -> UInt8[np.ndarray, "H W 3"]:
        """Convert the frame to RGB as displayed, resized to `size` (height, width) if that differs."""
        orientation = self._orientation_of(frame)
        height, width = (frame.height, frame.width) if size is None else orientation.size(*size)
        image = frame.to_ndarray(
            format="rgb24", height=height, width=width, interpolation=interpolation, threads=1
        )
        return orientation.apply(image)

    def _orientation_of(self, frame: av.VideoFrame) -> Orientation:
        # A matrix in the container holds for all frames. One in the stream may hold for a single frame. The
        # angle tells, except between a frame without a matrix and one that is upside down.
        unsure = not frame.rotation and self._orientation != Orientation()
        if frame.rotation != self._rotation or unsure:
            self._rotation, self._orientation = frame.rotation, Orientation.of(frame)
        return self._orientation
