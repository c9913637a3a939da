"""Colours of whole clips: brightness, contrast, saturation, hue and grey, the same for every frame.

The arithmetic is Pillow's, hence torchvision's on Pillow images. A factor of 1 changes nothing.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageEnhance

from inti_jax import config
from inti_jax.config.backbones import CLIP_MEAN

# What stands where a frame has no pixels: CLIP's mean, which its normalisation turns to zero.
FILL = (round(255 * CLIP_MEAN[0]), round(255 * CLIP_MEAN[1]), round(255 * CLIP_MEAN[2]))

Frames = UInt8[np.ndarray, "T H W 3"]


def jitter(frames: Frames, rng: np.random.Generator, cfg: config.Jitter) -> Frames:
    """With `cfg.probability`: brightness, contrast, saturation and hue by chance, in an order by chance.

    Factors are uniform in [max(0, 1 - s), 1 + s] for a strength s, the hue's turn in [-s, s]; those of
    strength 0 are left out. torchvision's ColorJitter.
    """
    if rng.random() >= cfg.probability:
        return frames
    strengths = (cfg.brightness, cfg.contrast, cfg.saturation)
    factors = [rng.uniform(max(0.0, 1 - strength), 1 + strength) for strength in strengths]
    amounts = (*factors, rng.uniform(-cfg.hue, cfg.hue))
    steps = (brightness, contrast, saturation, hue)
    for step in rng.permutation(len(steps)):
        if (*strengths, cfg.hue)[step] > 0:
            frames = steps[step](frames, amounts[step])
    return frames


def grayscale(frames: Frames) -> Frames:
    """Three equal channels: the luma of ITU-R 601."""
    luma = _at_once(frames, lambda image: image.convert("L"))
    return np.repeat(luma[..., None], 3, axis=-1)


def brightness(frames: Frames, factor: float) -> Frames:
    """Towards black below 1."""
    values = np.arange(256, dtype=np.float32) * np.float32(factor)
    return look_up(frames, values.clip(0, 255).astype(np.uint8))  # Pillow does not round either


def contrast(frames: Frames, factor: float) -> Frames:
    """Towards each frame's own mean luma below 1."""
    return each_frame(frames, lambda image: ImageEnhance.Contrast(image).enhance(factor))


def saturation(frames: Frames, factor: float) -> Frames:
    """Towards grey below 1."""
    return _at_once(frames, lambda image: ImageEnhance.Color(image).enhance(factor))


def hue(frames: Frames, turn: float) -> Frames:
    """Hues turned by `turn` in [-0.5, 0.5], a share of the circle of HSV."""
    turned = np.roll(np.arange(256), -int(turn * 255)).tolist()

    def turn_hue(image: Image.Image) -> Image.Image:
        hues, saturations, values = image.convert("HSV").split()
        return Image.merge("HSV", (hues.point(turned), saturations, values)).convert("RGB")

    return _at_once(frames, turn_hue)


def look_up(frames: Frames, table: Integer[np.ndarray, " 256"]) -> Frames:
    """Every channel's value replaced by that of the table."""
    return np.take(table.astype(np.uint8), frames)


def each_frame(frames: Frames, change: Callable[[Image.Image], Image.Image]) -> Frames:
    """What depends on a pixel's neighbours, or on the frame as a whole."""
    return np.stack([np.asarray(change(Image.fromarray(frame))) for frame in frames])


def _at_once(
    frames: Frames, change: Callable[[Image.Image], Image.Image]
) -> UInt8[np.ndarray, "T H W *channels"]:
    """What depends on a pixel alone: the frames below one another, as one image."""
    frame_count, height, width, _ = frames.shape
    image = Image.fromarray(np.ascontiguousarray(frames).reshape(frame_count * height, width, 3))
    out = np.asarray(change(image))
    return out.reshape(frame_count, height, *out.shape[1:])
