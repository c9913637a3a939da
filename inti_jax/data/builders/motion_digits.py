"""Build `motion_digits`: moving handwritten digits in classes that only the order of frames tells apart.

Ten classes make five pairs, and each class is the exact reverse of its partner: right / left, down / up,
clockwise / counterclockwise (on a circle), grow / shrink, brighten / dim. The digits are scikit-learn's
8x8 scans (UCI's handwritten digits). `train` and `val` share no scan.

The ceiling of a model that ignores order is exactly 50 %. Every rendered movement is in its split twice: as
rendered, under one label, and with its frames reversed, under the partner's label. Each frame is encoded on
its own with a constant quantiser, so the two videos decode to the same frames in opposite order. The centred
clip of 8 frames with stride 2 spans 15 of 19 frames, and as 19 - 15 is even, it takes the same frames of both
videos. A prediction from that set of frames is right for at most one of the two. Single frames do identify
the pair, on average: by the digit's position, its size, or its contrast.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from inti_jax.data.builders.base import Clip, VideoBuilder
from inti_jax.data.builders.digits import SIZE, draw, glyphs
from inti_jax.data.codec.encode import encode

FRAMES = 19
FPS = 12
PAIRS = (
    ("right", "left"),
    ("down", "up"),
    ("clockwise", "counterclockwise"),
    ("grow", "shrink"),
    ("brighten", "dim"),
)
LABELS = tuple(label for pair in PAIRS for label in pair)
# Movements to render in each split. Each gives two videos.
MOVEMENTS = {"train": 2000, "val": 500}

_SPLITS = ("train", "val")
_VIDEO_BYTES = 14_000  # about


class Movement(NamedTuple):
    """Number of a movement in its split, and its direction."""

    split: str
    number: int
    backwards: bool


class MotionDigits(VideoBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builder of `movements[split]` movements a split, the pairs in turn; always the same videos."""

    name = "motion_digits"

    def __init__(self, *, data_dir: str | Path, movements: Mapping[str, int] = MOVEMENTS):
        splits = {split: [*map(_clip, _movements(split, count))] for split, count in movements.items()}
        super().__init__(data_dir=data_dir, labels=LABELS, splits=splits)

    def read(self, source: Movement) -> bytes:
        """Render and encode a movement."""
        frames = render(source.split, source.number)
        return encode(frames[::-1] if source.backwards else frames, FPS)


def render(split: str, number: int) -> UInt8[np.ndarray, "T H W 3"]:
    """Render a movement of pair `number % 5`, in the direction of the pair's first label.

    The frames depend on the arguments alone.
    """
    rng = np.random.default_rng((_SPLITS.index(split), number))
    x, y, size, contrast = _trajectory(PAIRS[number % len(PAIRS)][0], rng)
    available = glyphs(split)
    return draw(available[rng.integers(len(available))], x, y, size, contrast, rng=rng)


def _movements(split: str, count: int) -> list[Movement]:
    return [Movement(split, number, backwards) for number in range(count) for backwards in (False, True)]


def _clip(movement: Movement) -> Clip:
    label = PAIRS[movement.number % len(PAIRS)][movement.backwards]
    return Clip(f"{movement.split}-{movement.number:05d}-{label}", label, movement, _VIDEO_BYTES)


def _trajectory(label: str, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Draw the digit's centre x and y, its size (pixels) and its contrast (share), for each frame."""
    share = np.linspace(0, 1, FRAMES)
    middle = SIZE / 2
    x = np.full(FRAMES, middle + rng.uniform(-5, 5))
    y = np.full(FRAMES, middle + rng.uniform(-5, 5))
    size = np.full(FRAMES, rng.uniform(20, 27))
    contrast = np.full(FRAMES, rng.uniform(0.85, 1))
    across = rng.uniform(9, 17) + share * rng.uniform(29, 38)
    if label == "right":
        x = across
    elif label == "down":
        y = across
    elif label == "clockwise":  # on the screen, where y grows downwards
        angle = rng.uniform(0, 2 * np.pi) + share * rng.uniform(1.1, 1.5) * np.pi
        radius = rng.uniform(18, 22)
        x, y = x + radius * np.cos(angle), y + radius * np.sin(angle)
        size = np.full(FRAMES, rng.uniform(15, 19))
    elif label == "grow":
        size = rng.uniform(9, 13) + share * rng.uniform(30, 38)
    elif label == "brighten":
        contrast = rng.uniform(0.06, 0.14) + share * rng.uniform(0.72, 0.86)
    return x, y, size, contrast
