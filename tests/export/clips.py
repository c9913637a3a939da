"""A real clip, where there is one."""

from pathlib import Path

import numpy as np

from inti_jax.data.codec import decode
from tests.export import examples

VIDEO = Path(__file__).parents[3] / "shared" / "videos" / "ucf101_v_Basketball_g01_c01.avi"


def clip_of_a_video(metadata) -> np.ndarray:
    """The clip for a model, of a real video or else of noise."""
    if VIDEO.exists():
        frames = list(decode.decode_frames(VIDEO.read_bytes(), np.arange(32)))
    else:
        frames = list(np.random.default_rng(0).integers(0, 256, (32, 48, 64, 3), np.uint8))
    return examples.module("clip_of.py").clip_of(frames, metadata)
