"""Turn and mirror decoded frames as the file's display matrix says.

A matrix is followed as the `ffmpeg` program follows it: each of the four quarter turns, as it is and
mirrored, is exact. Any other angle becomes the nearest quarter turn, where `ffmpeg` would turn the picture
within its frame and leave black corners; scales and shears are left out, as they are there.
"""

import struct
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

# A display matrix: nine numbers, by rows, of which the first two of the first two rows turn and mirror.
_MATRIX = struct.Struct("=9i")


class Orientation(NamedTuple):
    """How a decoded frame becomes the displayed one: rows and columns exchanged first, then flipped."""

    transposed: bool = False
    upside_down: bool = False
    mirrored: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> "Orientation":
        """Read the frame's display matrix; a frame without one is displayed as it is."""
        # A frame and its side data refer to each other, once that is asked for: its memory would wait for the
        # garbage collector. So they are asked of a tiny copy.
        tiny = VideoReformatter().reformat(frame, 8, 8, "rgb24", interpolation="POINT", threads=1)
        try:
            side_data: Any = tiny.side_data  # whose declared type has other keys than it takes
            matrix = side_data.get("DISPLAYMATRIX")
        except ValueError:
            # PyAV shows none of a frame's side data where it does not know the kind of one (EXIF, 3D views).
            # It has the angle apart from that; that it is mirrored as well cannot be known.
            quarter_turn = round(frame.rotation / 90) % 4  # counter-clockwise
            cos, sin = [(1, 0), (0, -1), (-1, 0), (0, 1)][quarter_turn]
            return cls.of_matrix(cos, sin, -sin, cos)
        if matrix is None:
            return cls()
        a, b, _, c, d, *_ = _MATRIX.unpack_from(matrix)
        return cls.of_matrix(a, b, c, d)

    @classmethod
    def of_matrix(cls, a: int, b: int, c: int, d: int) -> "Orientation":
        """Give the orientation in which the pixel at (x, y) is displayed at (a x + c y, b x + d y).

        Where x is to the right and y downwards, up to a shift. A matrix that would make the picture a line
        is left out.
        """
        if a * d == b * c:
            return cls()
        if abs(b) > abs(a):
            return cls(transposed=True, upside_down=b < 0, mirrored=c < 0)
        return cls(upside_down=d < 0, mirrored=a < 0)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Give the displayed height and width of a decoded frame's, or a decoded frame's of the displayed."""
        return (width, height) if self.transposed else (height, width)

    def apply(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H2 W2 3"]:
        """Give the decoded frame as displayed: a view of its pixels."""
        if self.transposed:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1]


class Converter:
    """Convert the frames of one stream to RGB as displayed."""

    def __init__(self) -> None:
        self._rotation: int | None = None
        self._orientation = Orientation()

    def size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Give the height and width of the frame as displayed."""
        return self._orientation_of(frame).size(frame.height, frame.width)

    def rgb(
        self, frame: av.VideoFrame, size: tuple[int, int] | None = None, interpolation: str | None = None
    ) -> UInt8[np.ndarray, "H W 3"]:
        """Give the frame as displayed, brought to `size` (height, width) where it has another."""
        orientation = self._orientation_of(frame)
        height, width = (frame.height, frame.width) if size is None else orientation.size(*size)
        image = frame.to_ndarray(
            format="rgb24", height=height, width=width, interpolation=interpolation, threads=1
        )
        return orientation.apply(image)

    def _orientation_of(self, frame: av.VideoFrame) -> Orientation:
        # A file's matrix is that of all frames; one in the stream may change, and the angle with it.
        if frame.rotation != self._rotation:
            self._rotation, self._orientation = frame.rotation, Orientation.of(frame)
        return self._orientation
