"""Choose the frames of a clip by index, in pure NumPy and without decoding.

Indices are in presentation order, never decrease, and stay in [0, total).
"""

from typing import Literal

import numpy as np
from jaxtyping import Int64


def clip_indices(
    total: int,
    *,
    num_frames: int,
    sampling: Literal["dense", "uniform"],
    stride: int = 1,
    rng: np.random.Generator | None = None,
    clip: int = 0,
    clips: int = 1,
) -> Int64[np.ndarray, " {num_frames}"]:
    """Choose the frame indices of one clip of a video with `total` frames.

    With `rng`, the clip is random, for training. Without, it is test clip number `clip` of `clips`, always
    the same. `stride` counts source frames, and only `dense` uses it.
    """
    if sampling == "dense":
        return dense(total, num_frames, stride, rng, clip, clips)
    return uniform(total, num_frames, rng, clip, clips)


def span(num_frames: int, sampling: Literal["dense", "uniform"], stride: int) -> int:
    """Compute the number of frames that a video should have.

    Clips of a shorter video repeat frames, or take them closer together.
    """
    return (num_frames - 1) * stride + 1 if sampling == "dense" else num_frames


def dense(
    total: int,
    num_frames: int,
    stride: int,
    rng: np.random.Generator | None = None,
    clip: int = 0,
    clips: int = 1,
) -> Int64[np.ndarray, " {num_frames}"]:
    """Choose `num_frames` consecutive frames, `stride` apart.

    With `rng`, the start is random. Otherwise the `clips` starts spread evenly from the first to the last
    possible one, and a single clip is centred. Where the video is shorter than the clip, its last frame is
    repeated.
    """
    latest = max(total - span(num_frames, "dense", stride), 0)
    if rng is not None:
        start = int(rng.integers(latest + 1))
    elif clips == 1:
        start = latest // 2
    else:
        start = (2 * clip * latest + clips - 1) // (2 * (clips - 1))  # clip / (clips - 1) of latest, rounded
    return np.minimum(start + stride * np.arange(num_frames, dtype=np.int64), total - 1)


def uniform(
    total: int,
    num_frames: int,
    rng: np.random.Generator | None = None,
    clip: int = 0,
    clips: int = 1,
) -> Int64[np.ndarray, " {num_frames}"]:
    """Choose one frame from each of `num_frames` equal segments of the video (TSN, arXiv:1608.00859).

    With `rng`, it is a random one. Otherwise it is the one in the segment's middle or, for several clips, at
    (clip + 1/2) / clips of the segment. Where the video has fewer frames than segments, frames repeat.
    """
    within = rng.random(num_frames) if rng is not None else (clip + 0.5) / clips
    positions = (np.arange(num_frames) + within) * total / num_frames
    return np.minimum(positions.astype(np.int64), total - 1)
