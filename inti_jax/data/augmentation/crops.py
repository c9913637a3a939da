"""Choose boxes inside a frame, and resize a clip's box.

A box is (top, left, height, width), in pixels. A shape is (height, width), those that the box is resized to.
A box of its proportions keeps the shapes of things.
"""

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_TRIES = 10
_SHARES = (1.0, 0.875, 0.75, 0.66)  # of the sides of the largest box

Box = tuple[int, int, int, int]


def random_resized_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """Draw a box anywhere, with a share of the area in `scale` and a width / height in `ratio`.

    This is Inception's crop (arXiv:1409.4842): the area is uniform, and the logarithm of the ratio, too.
    """
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_height = round(math.sqrt(area / aspect))
        box_width = round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            return top, left, box_height, box_width
    # The frame is too long or too wide for the ratios: take the largest central box that has one of them.
    box_width = max(1, min(width, round(height * ratio[1])))
    box_height = max(1, min(height, round(width / ratio[0])))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def largest(height: int, width: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Give the height and the width of the largest box in a frame with the proportions of `shape`.

    One side is the frame's. The other is rounded, and at least 1.
    """
    rows, columns = shape
    if width * rows >= height * columns:
        return height, min(width, max(1, round(height * columns / rows)))
    return min(height, max(1, round(width * rows / columns))), width


def multi_scale_box(rng: np.random.Generator, height: int, width: int, shape: tuple[int, int]) -> Box:
    """Draw a box in a corner or the centre, each side 1, .875, .75 or .66 of that of the largest box.

    With square shapes this is TSN's crop (arXiv:1608.00859, "corner cropping" and "scale jittering"), with
    the five positions of the paper. As in TSN's code, the shares of the two sides are equal or neighbours in
    that list, so no box is too long.
    """
    heights, widths = (
        [max(1, int(side * share)) for share in _SHARES] for side in largest(height, width, shape)
    )
    places = range(len(_SHARES))
    pairs = [(heights[i], widths[j]) for i in places for j in places if abs(i - j) <= 1]
    box_height, box_width = pairs[rng.integers(len(pairs))]
    down, right = height - box_height, width - box_width
    corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    top, left = corners[rng.integers(len(corners))]
    return top, left, box_height, box_width


def resize_box(
    frames: UInt8[np.ndarray, "T H W 3"], box: Box, shape: tuple[int, int]
) -> UInt8[np.ndarray, "T {shape[0]} {shape[1]} 3"]:
    """Resize the box of every frame to `shape`, bicubic."""
    top, left, height, width = box
    if (height, width) == shape:  # nothing to resample
        return np.ascontiguousarray(frames[:, top : top + height, left : left + width])
    out = np.empty((len(frames), *shape, 3), np.uint8)
    for index, frame in enumerate(frames):
        # Pillow widens the filter when it shrinks an image, so fine detail does not alias.
        image = Image.fromarray(frame)
        area = (left, top, left + width, top + height)
        out[index] = np.asarray(image.resize(shape[::-1], Image.Resampling.BICUBIC, area))
    return out
