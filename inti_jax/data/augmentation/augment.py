"""What is done to a clip's uint8 frames on their way to the model: every frame of a clip is treated alike."""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from inti_jax import config
from inti_jax.data.augmentation import colour
from inti_jax.data.augmentation.crops import multi_scale_box, random_resized_box, resize_box
from inti_jax.data.augmentation.rand_augment import rand_augment


class TrainClip(NamedTuple):
    """An augmented clip, and whether it is mirrored: then its label is its mirror image's."""

    frames: UInt8[np.ndarray, "T R R 3"]
    mirrored: bool


def train_clip(frames: UInt8[np.ndarray, "T H W 3"], rng: np.random.Generator, cfg: config.Data) -> TrainClip:
    """A random box of the frames as a square of `cfg.resolution`, and what else `cfg` asks for.

    In the published recipes' order: RandAugment of whole frames, crop, flip, colour jitter, grey, erasing.
    """
    # Box and flip draw from `rng`, all else from children of it: what is turned on leaves the rest as it is.
    ops_rng, jitter_rng, grey_rng, erase_rng = rng.spawn(4)
    frames = rand_augment(frames, ops_rng, cfg.rand_augment)
    _, height, width, _ = frames.shape
    if cfg.crop == "multi_scale":
        box = multi_scale_box(rng, height, width)
    else:
        box = random_resized_box(rng, height, width, cfg.crop_scale, cfg.crop_ratio)
    clip = resize_box(frames, box, cfg.resolution)
    # The draw is unconditional, so that a run without flips sees the same crops.
    mirrored = bool(rng.random() < 0.5) and cfg.flip
    if mirrored:
        clip = np.ascontiguousarray(clip[:, :, ::-1])
    clip = colour.jitter(clip, jitter_rng, cfg.jitter)
    if grey_rng.random() < cfg.grayscale:
        clip = colour.grayscale(clip)
    return TrainClip(erase(clip, erase_rng, cfg.erase), mirrored)


def erase(
    frames: UInt8[np.ndarray, "T H W 3"], rng: np.random.Generator, cfg: config.Erase
) -> UInt8[np.ndarray, "T H W 3"]:
    """With `cfg.probability`, one box of all frames is filled: random erasing (arXiv:1708.04896).

    The box's share of the area and its width / height are drawn as a random-resized crop's. `noise` is
    uniform in 0..255 for each pixel and channel, the same in all frames.
    """
    if rng.random() >= cfg.probability:
        return frames
    _, height, width, _ = frames.shape
    top, left, box_height, box_width = random_resized_box(rng, height, width, cfg.scale, cfg.ratio)
    noise = rng.integers(256, size=(box_height, box_width, 3), dtype=np.uint8)
    frames = frames.copy()
    frames[:, top : top + box_height, left : left + box_width] = noise if cfg.fill == "noise" else colour.FILL
    return frames


def test_views(
    frames: UInt8[np.ndarray, "T H W 3"], *, resolution: int, crops: int
) -> UInt8[np.ndarray, "{crops} T {resolution} {resolution} 3"]:
    """Square crops as long as the frames' short side, resized to `resolution`.

    One crop is central; three are at the start, the middle and the end of the longer side.
    """
    _, height, width, _ = frames.shape
    side = min(height, width)
    shares = (0.5,) if crops == 1 else tuple(crop / (crops - 1) for crop in range(crops))
    boxes = [(int((height - side) * share), int((width - side) * share), side, side) for share in shares]
    return np.stack([resize_box(frames, box, resolution) for box in boxes])
