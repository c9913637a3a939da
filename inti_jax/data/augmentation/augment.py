"""Turn the uint8 frames of a clip into the model's square input, every frame of a clip alike."""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from inti_jax import config
from inti_jax.data.augmentation import colour
from inti_jax.data.augmentation.crops import multi_scale_box, random_resized_box, resize_box
from inti_jax.data.augmentation.rand_augment import rand_augment


class TrainClip(NamedTuple):
    """An augmented clip, flagged if it is mirrored.

    A mirrored clip has the label of its mirror image.
    """

    frames: UInt8[np.ndarray, "T R R 3"]
    mirrored: bool


def train_clip(frames: UInt8[np.ndarray, "T H W 3"], rng: np.random.Generator, cfg: config.Data) -> TrainClip:
    """Crop a random box of the frames to a square of `cfg.resolution`, and augment as `cfg` says.

    The order is that of the published recipes: RandAugment of whole frames, crop, flip, colour jitter, grey,
    erasing.
    """
    # Box and flip draw from `rng`, each other step from a child of it. So turning one on changes no draw of
    # the others.
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
    """Fill one box of all frames, with `cfg.probability`: random erasing (arXiv:1708.04896).

    The box's share of the area and its width / height are drawn as for a random-resized crop. `noise` is
    uniform in 0..255 for each pixel and channel, and the same in all frames.
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
    """Cut square crops as long as the frames' short side, and resize them to `resolution`.

    One crop is central. Three are at the start, the middle and the end of the longer side.
    """
    _, height, width, _ = frames.shape
    side = min(height, width)
    shares = (0.5,) if crops == 1 else tuple(crop / (crops - 1) for crop in range(crops))
    boxes = [(int((height - side) * share), int((width - side) * share), side, side) for share in shares]
    return np.stack([resize_box(frames, box, resolution) for box in boxes])
