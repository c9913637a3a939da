"""Build `still_digits`: single frames of handwritten digits, labelled by the digit and its place.

The forty classes are each digit in each quarter of the frame. An image model trained on these is to
`motion_digits` what CLIP is to videos: it knows single frames of the same kind, but no motion.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from inti_jax.data.builders.base import Clip, VideoBuilder
from inti_jax.data.builders.digits import SIZE, digits, draw, glyphs
from inti_jax.data.codec.encode import encode

QUARTERS = ("top left", "top right", "bottom left", "bottom right")
LABELS = tuple(f"{digit} at the {quarter}" for digit in range(10) for quarter in QUARTERS)
FRAMES = {"train": 8000, "val": 1000}

_SPLITS = ("train", "val")
_VIDEO_BYTES = 1_600  # about


class Still(NamedTuple):
    """Number of a frame in its split."""

    split: str
    number: int


class StillDigits(VideoBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builder of `frames[split]` one-frame videos a split, the classes in turn; always the same videos."""

    name = "still_digits"

    def __init__(self, *, data_dir: str | Path, frames: Mapping[str, int] = FRAMES):
        splits = {split: [_clip(split, i) for i in range(count)] for split, count in frames.items()}
        super().__init__(data_dir=data_dir, labels=LABELS, splits=splits)

    def read(self, source: Still) -> bytes:
        """Render and encode a frame."""
        return encode(render(source.split, source.number), 1)


def render(split: str, number: int) -> UInt8[np.ndarray, "1 S S 3"]:
    """Render a frame of class `number % 40`; it depends on the arguments alone."""
    digit, quarter = divmod(number % len(LABELS), len(QUARTERS))
    rng = np.random.default_rng((_SPLITS.index(split), number))
    candidates = np.flatnonzero(digits(split) == digit)
    size = rng.uniform(18, 36)
    # Keep the centre inside its quarter, and all but a margin of the digit inside the frame.
    near, far = max(size / 2 - 4, 6), SIZE / 2 - 2
    x, y = rng.uniform(near, far, 2)
    x, y = SIZE - x if quarter % 2 else x, SIZE - y if quarter // 2 else y
    glyph, contrast = glyphs(split)[rng.choice(candidates)], rng.uniform(0.5, 1)
    return draw(glyph, *(np.array([value]) for value in (x, y, size, contrast)), rng=rng)


def _clip(split: str, number: int) -> Clip:
    return Clip(f"{split}-{number:05d}", LABELS[number % len(LABELS)], Still(split, number), _VIDEO_BYTES)
