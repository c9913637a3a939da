"""Define the trace of a forward pass: the weights by which it mixes tokens and frames.

`VideoModel.trace` makes it, and attribution.py follows it from the head back to the frames.
"""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from inti_jax.models.adapters import shift_heads


class Merging(NamedTuple):
    """The merging of patches in a block; see tome.py."""

    places: Int[Array, "BT N"]  # index of the new token that each token becomes a part of
    shares: Float[Array, "BT N"]  # share of each token in that new token


class BlockTrace(NamedTuple):
    """The weights by which a block mixes the tokens of a frame, and those of frames.

    Attention is averaged over the heads, in float32. Where heads look at other frames
    (`BlockAdapters.shifts`), the G groups of heads that look at the same frame are apart. Over groups and
    tokens, attention sums to 1.
    """

    attention: Float[Array, "BT G N N"]
    frames: Int[Array, "T G"]  # the frame that each group of heads looks at
    over_time: Float[Array, "BN T T"] | None  # attention along the frames, which comes first
    merging: Merging | None  # of patches, which comes last


class Blend(NamedTuple):
    """The weights by which a compressor blends frames."""

    weights: Float[Array, "B S N g"]


class Trace(NamedTuple):
    """The weights of a forward pass: blocks and compressors in their order, then the pooling."""

    steps: tuple[BlockTrace | Blend, ...]
    pooling: Float[Array, "BS N"]  # share of each token in its frame's vector


def by_frame(
    attention: Float[Array, "BT A N N"], shifts: tuple[tuple[int, int], ...]
) -> Float[Array, "BT G N N"]:
    """Sum the heads that look at the same frame, and divide by the number of all heads."""
    edges = itertools.accumulate((heads for _, heads in shifts), initial=0)
    groups = itertools.pairwise([*edges, attention.shape[1]])
    parts = [attention[:, first:end].sum(axis=1) for first, end in groups]
    return jnp.stack(parts, axis=1) / attention.shape[1]


def frames_seen(frames: int, shifts: tuple[tuple[int, int], ...]) -> Int[Array, "{frames} G"]:
    """List for each of `frames` frames the one that each group of heads of `by_frame` looks at."""
    numbers = jnp.arange(frames, dtype=jnp.float32)[None, :, None, None, None]
    own = jnp.broadcast_to(numbers, (1, frames, 1, len(shifts) + 1, 1))
    one_head_each = tuple((offset, 1) for offset, _ in shifts)
    return shift_heads(own, one_head_each)[0, :, 0, :, 0].astype(jnp.int32)


def merging(
    places: Int[Array, "BT N"], before: Float[Array, "BT N"] | None, after: Float[Array, "BT M"]
) -> Merging:
    """Describe a merging; `before` and `after` it, each token stands for so many patches."""
    counts = jnp.ones(places.shape, jnp.float32) if before is None else before
    return Merging(places, counts / jnp.take_along_axis(after, places, axis=1))
