"""Draw frames with a handwritten digit on them, for the embedded datasets.

The digits are scikit-learn's 8x8 scans (UCI's handwritten digits). `train` and `val` share no scan.
"""

import functools
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, UInt8

SIZE = 64  # pixels a side

_VAL_DIGITS = 360  # the last of the 1,797


@functools.cache
def glyphs(split: str) -> Float[np.ndarray, "n 8 8"]:
    """Return the scans of a split, in [0, 1]."""
    return _of_split(_scans().images / 16, split)


@functools.cache
def digits(split: str) -> Int64[np.ndarray, " n"]:
    """Return the digit, 0 to 9, that each of a split's `glyphs` shows."""
    return _of_split(_scans().target.astype(np.int64), split)


@functools.cache
def _scans() -> Any:
    from sklearn.datasets import load_digits  # imported late: to prepare other datasets needs none of it

    return load_digits()


def draw(
    glyph: Float[np.ndarray, "8 8"],
    x: Float[np.ndarray, " T"],
    y: Float[np.ndarray, " T"],
    size: Float[np.ndarray, " T"],
    contrast: Float[np.ndarray, " T"],
    *,
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "T S S 3"]:
    """Draw the glyph in frames, at centre `x`, `y` and of `size` (pixels).

    `rng` draws the colours and the ground's texture, which are the same in all frames.
    """
    # Each axis is interpolated separately.
    rows, columns = _weights(y, size), _weights(x, size)
    opacity = rows @ glyph @ columns.transpose(0, 2, 1)
    opacity = np.clip(opacity * 1.6 - 0.3, 0, 1) * contrast[:, None, None]  # steeper: crisper edges

    dark, bright = rng.uniform(15, 90, 3), rng.uniform(165, 240, 3)
    ground, ink = (dark, bright) if rng.random() < 0.5 else (bright, dark)
    ground = np.clip(ground + _texture(rng), 0, 255)
    # In place and in float32: this is most of the rendering's time.
    frames = opacity[..., None].astype(np.float32) * (ink - ground).astype(np.float32)
    frames += (ground + 0.5).astype(np.float32)
    return frames.astype(np.uint8)


def _weights(center: Float[np.ndarray, " T"], size: Float[np.ndarray, " T"]) -> Float[np.ndarray, "T S 8"]:
    """Compute the bilinear weights of the glyph's 8 cells in each of the S pixels along one axis."""
    pixels = np.arange(SIZE) + 0.5
    cells = (pixels[None, :] - center[:, None]) * (8 / size[:, None]) + 3.5
    return np.maximum(0, 1 - np.abs(cells[..., None] - np.arange(8)))


def _texture(rng: np.random.Generator) -> Float[np.ndarray, "S S 3"]:
    """Draw soft blotches and a little grain, to add to the ground's colour."""
    blotches = rng.uniform(-14, 14, (8, 8, 3))
    weights = _weights(np.array([SIZE / 2]), np.array([float(SIZE) * 8 / 7]))[0]
    soft = weights @ blotches.transpose(2, 0, 1) @ weights.T  # [3, S, S]
    return soft.transpose(1, 2, 0) + rng.normal(0, 2, (SIZE, SIZE, 1))


def _of_split(rows: np.ndarray, split: str) -> np.ndarray:
    return rows[-_VAL_DIGITS:] if split == "val" else rows[:-_VAL_DIGITS]
