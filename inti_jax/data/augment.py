"""Crop, resize and flip whole clips of uint8 frames: every frame of a clip is treated alike."""

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_CROP_TRIES = 10


def train_clip(
    frames: UInt8[np.ndarray, "T H W 3"],
    rng: np.random.Generator,
    *,
    resolution: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: bool,
) -> UInt8[np.ndarray, "T {resolution} {resolution} 3"]:
    """A random box of the frames, resized to a square; mirrored left to right half of the time if `flip`.

    `scale` is the range of the box's share of the frame's area, `ratio` that of its width / height
    (Inception's crop, arXiv:1409.4842).
    """
    _, height, width, _ = frames.shape
    top, left, box_height, box_width = _random_box(rng, height, width, scale, ratio)
    clip = _resize_box(frames, top, left, box_height, box_width, resolution)
    # The draw is unconditional, so that turning `flip` on leaves the crops as they were.
    mirrored = rng.random() < 0.5
    return np.ascontiguousarray(clip[:, :, ::-1]) if flip and mirrored else clip


def test_views(
    frames: UInt8[np.ndarray, "T H W 3"], *, resolution: int, crops: int
) -> UInt8[np.ndarray, "{crops} T {resolution} {resolution} 3"]:
    """Square crops as long as the frames' short side, resized to `resolution`.

    One crop is central; three are at the start, the middle and the end of the longer side.
    """
    _, height, width, _ = frames.shape
    side = min(height, width)
    shares = (0.5,) if crops == 1 else tuple(crop / (crops - 1) for crop in range(crops))
    boxes = [(int((height - side) * share), int((width - side) * share)) for share in shares]
    return np.stack([_resize_box(frames, top, left, side, side, resolution) for top, left in boxes])


def _random_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a box inside the frame."""
    for _ in range(_CROP_TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_height = round(math.sqrt(area / aspect))
        box_width = round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            return top, left, box_height, box_width
    # The frame is too long or too wide for the asked ratios: the largest central box that has one of them.
    box_width = max(1, min(width, round(height * ratio[1])))
    box_height = max(1, min(height, round(width / ratio[0])))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _resize_box(
    frames: UInt8[np.ndarray, "T H W 3"], top: int, left: int, height: int, width: int, resolution: int
) -> UInt8[np.ndarray, "T {resolution} {resolution} 3"]:
    if height == width == resolution:  # nothing to resample, nothing to lose
        return np.ascontiguousarray(frames[:, top : top + height, left : left + width])
    out = np.empty((len(frames), resolution, resolution, 3), np.uint8)
    for index, frame in enumerate(frames):
        # Pillow widens the filter when it shrinks, so fine detail does not alias.
        image = Image.fromarray(frame)
        box = (left, top, left + width, top + height)
        out[index] = np.asarray(image.resize((resolution, resolution), Image.Resampling.BICUBIC, box))
    return out
