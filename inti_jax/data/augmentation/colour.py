"""Change brightness, contrast, saturation and hue of clips, or make them grey, all frames alike.

The arithmetic is Pillow's, hence torchvision's on Pillow images. A factor of 1 changes nothing.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageEnhance

from inti_jax import config
from inti_jax.config.backbones import CLIP_MEAN

# The colour where a frame has no pixels: CLIP's mean, which its normalisation turns to zero.
FILL = (round(255 * CLIP_MEAN[0]), round(255 * CLIP_MEAN[1]), round(255 * CLIP_MEAN[2]))

Frames = UInt8[np.ndarray, "T H W 3"]


def jitter(frames: Frames, rng: np.random.Generator, cfg: config.Jitter) -> Frames:
    """Jitter brightness, contrast, saturation and hue in a random order, with `cfg.probability`.

    Factors are uniform in [max(0, 1 - s), 1 + s] for a strength s, and the hue's turn in [-s, s]. Those of
    strength 0 are left out. This is torchvision's ColorJitter.
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
    """Set all three channels to the luma of ITU-R 601."""
    luma = _at_once(frames, lambda image: image.convert("L"))
    return np.repeat(luma[..., None], 3, axis=-1)


def brightness(frames: Frames, factor: float) -> Frames:
    """Scale the brightness by `factor`; below 1 is towards black."""
    values = np.arange(256, dtype=np.float32) * np.float32(factor)
    return look_up(frames, values.clip(0, 255).astype(np.uint8))  # Pillow does not round either


def contrast(frames: Frames, factor: float) -> Frames:
    """Scale the contrast by `factor`; below 1 is towards each frame's own mean luma."""
    return each_frame(frames, lambda image: ImageEnhance.Contrast(image).enhance(factor))


def saturation(frames: Frames, factor: float) -> Frames:
    """Scale the saturation by `factor`; below 1 is towards grey."""
    return _at_once(frames, lambda image: ImageEnhance.Color(image).enhance(factor))


def hue(frames: Frames, turn: float) -> Frames:
    """Turn the hues by `turn` in [-0.5, 0.5], a share of the circle of HSV."""
    turned = np.roll(np.arange(256), -int(turn * 255)).tolist()

    def turn_hue(image: Image.Image) -> Image.Image:
        hues, saturations, values = image.convert("HSV").split()
        return Image.merge("HSV", (hues.point(turned), saturations, values)).convert("RGB")

    return _at_once(frames, turn_hue)


def look_up(frames: Frames, table: Integer[np.ndarray, " 256"]) -> Frames:
    """Replace every channel's value by its entry in the table."""
    return np.take(table.astype(np.uint8), frames)


def each_frame(frames: Frames, change: Callable[[Image.Image], Image.Image]) -> Frames:
    """Apply `change`, which may depend on neighbouring pixels or the whole frame, to each frame."""
    return np.stack([np.asarray(change(Image.fromarray(frame))) for frame in frames])


def _at_once(
    frames: Frames, change: Callable[[Image.Image], Image.Image]
) -> UInt8[np.ndarray, "T H W *channels"]:
    """Apply `change`, which depends on each pixel alone, to all frames as one image.

    The image has the frames below one another.
    """
    frame_count, height, width, _ = frames.shape
    image = Image.fromarray(np.ascontiguousarray(frames).reshape(frame_count * height, width, 3))
    out = np.asarray(change(image))
    return out.reshape(frame_count, height, *out.shape[1:])
