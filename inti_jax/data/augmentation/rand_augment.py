"""Apply RandAugment (arXiv:1909.13719) to whole clips: random operations, the same for every frame.

The operations and their magnitudes are those of timm's `rand-m7-n4-mstd0.5-inc1` family, which the video
recipes took over. There are 15 operations, all stronger with the magnitude. Each one drawn is left out half
of the time; the paper has an identity among its operations instead. Two things differ from timm: posterize
keeps a bit at magnitude 10, where timm's frame is black, and frames move by whole pixels, so that nothing is
resampled.

Rotations and shears are bilinear. Areas from outside the frame get CLIP's mean colour. Operations that look
at a whole frame (contrast, autocontrast, equalize) do so frame by frame, as in the recipes.
"""

from collections.abc import Callable
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from inti_jax import config
from inti_jax.data.augmentation import colour
from inti_jax.data.augmentation.colour import FILL, Frames, each_frame

# Bicubic costs twice as much, and the crop resamples the frame anyway.
_BILINEAR = Image.Resampling.BILINEAR
_VALUES = np.arange(256)


def rand_augment(frames: Frames, rng: np.random.Generator, cfg: config.RandAugment) -> Frames:
    """Apply `cfg.ops` operations, drawn with replacement, in turn, each with `cfg.probability`.

    Each has a magnitude of its own, normal around `cfg.magnitude` and clipped to 0..10, and a random sign.
    """
    names = rng.choice(list(OPERATIONS), cfg.ops)
    applied = rng.random(cfg.ops) < cfg.probability
    magnitudes = rng.normal(cfg.magnitude, cfg.std, cfg.ops).clip(0, 10)
    senses = rng.choice((-1, 1), cfg.ops)
    for name, level in zip(names[applied], (senses * magnitudes / 10)[applied], strict=True):
        frames = OPERATIONS[name](frames, float(level))
    return frames


def _posterize(frames: Frames, level: float) -> Frames:
    bits = max(1, 4 - int(4 * abs(level)))
    return colour.look_up(frames, _VALUES >> (8 - bits) << (8 - bits))


def _solarize(frames: Frames, level: float) -> Frames:
    threshold = 256 - int(256 * abs(level))
    return colour.look_up(frames, np.where(threshold > _VALUES, _VALUES, 255 - _VALUES))


def _solarize_add(frames: Frames, level: float) -> Frames:
    added = np.minimum(_VALUES + int(110 * abs(level)), 255)
    return colour.look_up(frames, np.where(_VALUES < 128, added, _VALUES))


def _sharpness(frames: Frames, level: float) -> Frames:
    return each_frame(frames, lambda image: ImageEnhance.Sharpness(image).enhance(_factor(level)))


def _factor(level: float) -> float:
    return max(0.1, 1 + 0.9 * level)


def _rotate(frames: Frames, level: float) -> Frames:
    return each_frame(frames, lambda image: image.rotate(30 * level, _BILINEAR, fillcolor=FILL))


def _shear_x(frames: Frames, level: float) -> Frames:
    return _affine(frames, (1.0, 0.3 * level, 0.0, 0.0, 1.0, 0.0))


def _shear_y(frames: Frames, level: float) -> Frames:
    return _affine(frames, (1.0, 0.0, 0.0, 0.3 * level, 1.0, 0.0))


def _translate_x(frames: Frames, level: float) -> Frames:
    return _move(frames, 2, round(0.45 * level * frames.shape[2]))


def _translate_y(frames: Frames, level: float) -> Frames:
    return _move(frames, 1, round(0.45 * level * frames.shape[1]))


def _move(frames: Frames, axis: int, pixels: int) -> Frames:
    """Move the frames towards the start of the axis, or its end if `pixels` is negative."""
    moved = np.roll(frames, -pixels, axis)
    start, stop = (-pixels, None) if pixels > 0 else (None, -pixels)
    np.moveaxis(moved, axis, 0)[start:stop] = FILL
    return moved


def _affine(frames: Frames, matrix: tuple[float, ...]) -> Frames:
    """Transform the frames by `matrix`, which is (a, b, c, d, e, f).

    The pixel at (x, y) comes from (ax + by + c, dx + ey + f).
    """

    def transform(image: Image.Image) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix, _BILINEAR, fillcolor=FILL)

    return each_frame(frames, transform)


# Functions of a clip and a level. The level is the magnitude / 10, and its sign the direction of an
# operation that has two.
OPERATIONS: MappingProxyType[str, Callable[[Frames, float], Frames]] = MappingProxyType(
    {
        "autocontrast": lambda frames, _: each_frame(frames, ImageOps.autocontrast),
        "equalize": lambda frames, _: each_frame(frames, ImageOps.equalize),
        "invert": lambda frames, _: 255 - frames,
        "rotate": _rotate,
        "posterize": _posterize,
        "solarize": _solarize,
        "solarize_add": _solarize_add,
        "saturation": lambda frames, level: colour.saturation(frames, _factor(level)),
        "contrast": lambda frames, level: colour.contrast(frames, _factor(level)),
        "brightness": lambda frames, level: colour.brightness(frames, _factor(level)),
        "sharpness": _sharpness,
        "shear_x": _shear_x,
        "shear_y": _shear_y,
        "translate_x": _translate_x,
        "translate_y": _translate_y,
    }
)
