"""Turn the uint8 frames of a clip into the model's input, every frame of a clip alike."""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from inti_jax import config
from inti_jax.data.augmentation import colour
from inti_jax.data.augmentation.crops import largest, multi_scale_box, random_resized_box, resize_box
from inti_jax.data.augmentation.rand_augment import rand_augment


class TrainClip(NamedTuple):
    """An augmented clip, flagged if it is mirrored.

    A mirrored clip has the label of its mirror image.
    """

    frames: UInt8[np.ndarray, "T h w 3"]
    mirrored: bool


def train_clip(
    frames: UInt8[np.ndarray, "T H W 3"],
    rng: np.random.Generator,
    cfg: config.Data,
    *,
    may_flip: bool = True,
) -> TrainClip:
    """Crop a random box of the frames to `cfg.resolution`, and augment as `cfg` says.

    The order is that of the published recipes: RandAugment of whole frames, crop, flip, colour jitter, grey,
    erasing. `may_flip` is False for a clip that has no mirror image among the labels.
    """
    # Box and flip draw from `rng`, each other step from a child of it. So turning one on changes no draw of
    # the others.
    ops_rng, jitter_rng, grey_rng, erase_rng = rng.spawn(4)
    frames = rand_augment(frames, ops_rng, cfg.rand_augment)
    (_, height, width, _), shape = frames.shape, cfg.height_width
    if cfg.crop == "multi_scale":
        box = multi_scale_box(rng, height, width, shape)
    else:
        low, high = (ratio * (shape[1] / shape[0]) for ratio in cfg.crop_ratio)
        box = random_resized_box(rng, height, width, cfg.crop_scale, (low, high))
    clip = resize_box(frames, box, shape)
    # The draw is unconditional, so that a run without flips sees the same crops.
    mirrored = bool(rng.random() < 0.5) and cfg.flip and may_flip
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
    frames: UInt8[np.ndarray, "T H W 3"], shape: tuple[int, int], *, crops: int
) -> UInt8[np.ndarray, "{crops} T {shape[0]} {shape[1]} 3"]:
    """Cut the largest crops with the proportions of `shape`, a height and a width, and resize them to it.

    One crop is central. Three are at the start, the middle and the end of the frames' longer side, relative
    to that shape. For a square, crops are as long as the short side.
    """
    _, height, width, _ = frames.shape
    rows, columns = largest(height, width, shape)
    shares = (0.5,) if crops == 1 else tuple(crop / (crops - 1) for crop in range(crops))
    boxes = [
        (int((height - rows) * share), int((width - columns) * share), rows, columns) for share in shares
    ]
    return np.stack([resize_box(frames, box, shape) for box in boxes])
