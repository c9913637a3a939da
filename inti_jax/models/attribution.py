"""Follow a forward pass from what the head sees back to the tokens of the frames, in NumPy.

Two questions have two answers, both `[T, N]` for the tokens that enter the first block:

- `shares`: how much of a token is in the token that it became a part of, by blending and merging alone. A
  compressor blends equal positions, so the path is unique and the share is the product of weights along it.
- `rollout`: how much of what the head sees came from a token, through attention as well. It is attention
  rollout (Abnar and Zuidema, arXiv:2005.00928): the residual and the attention, averaged over heads, count
  half each, and the matrices of the blocks are multiplied. The blends' weights are further factors.

A trace here is that of one video, B = 1.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from inti_jax.models.trace import Blend, BlockTrace, Merging, Trace

Shares = Float[np.ndarray, "T N"]

FAR = 0.1  # of a weight from the equal one, from which on a layer is said to choose


def shares(trace: Trace) -> Shares:
    """Compute the share of each token in the token that it is blended and merged into.

    Over the tokens that become one, shares sum to 1: after compressors of ratio R, over the R frames of a
    group at each position.
    """

    def before_block(share: Float[np.ndarray, "T M"], block: BlockTrace) -> Shares:
        return _before_merging(share, block.merging)

    return _back(np.ones(trace.pooling.shape), trace, before_block)


def rollout(trace: Trace) -> Shares:
    """Compute the share of each token in what the head sees, which is 1 in total.

    The pooling's weights start it, equally for each frame that is left. Attention along the frames and heads
    that look at other frames are followed. Convolutions over time, MLPs and added modules are not.
    """
    pooled = np.asarray(trace.pooling, np.float64)
    return _back(pooled / len(pooled), trace, _before_attention)


def places(trace: Trace) -> Int[np.ndarray, "T N"]:
    """Compute the index of the token that each token is merged into, in its frame after the last block."""
    blocks = [step for step in trace.steps if isinstance(step, BlockTrace)]
    frames, _, _, tokens = blocks[0].attention.shape
    result = np.tile(np.arange(tokens), (frames, 1))
    for block in blocks:
        if block.merging is not None:
            result = np.take_along_axis(np.asarray(block.merging.places), result, axis=1)
    return result


def far_from_equal(weights: Float[np.ndarray, "*B g"]) -> float:
    """Compute the share of tokens of which some frame's weight is further than `FAR` from 1 / g."""
    weights = np.asarray(weights)
    return float((np.abs(weights - 1 / weights.shape[-1]) > FAR).any(axis=-1).mean())


def fates(shares: Float[np.ndarray, "T P"], ratio: int) -> Float[np.ndarray, "T 3"]:
    """Compute the share of a frame's patches that were kept, averaged and faded.

    They are so by their share in the token that they are blended into, of `ratio` frames: above, about or
    below an equal share. About is within a fifth of it, which for pairs is `FAR`.
    """
    relative = shares * ratio
    kept, faded = relative > 1 + 2 * FAR, relative < 1 - 2 * FAR
    return np.stack([kept, ~(kept | faded), faded], axis=-1).mean(axis=1)


def _back(
    share: Float[np.ndarray, "S M"],
    trace: Trace,
    before_block: Callable[[np.ndarray, BlockTrace], np.ndarray],
) -> Shares:
    """Follow shares of what leaves the last block back to what enters the first."""
    for step in reversed(trace.steps):
        share = _before_blend(share, step) if isinstance(step, Blend) else before_block(share, step)
    return share


def _before_blend(share: Float[np.ndarray, "S N"], blend: Blend) -> Shares:
    weights = np.asarray(blend.weights, np.float64)[0]  # [S, N, g]
    by_group = share[:, None] * np.moveaxis(weights, 2, 1)
    return by_group.reshape(-1, share.shape[1])


def _before_merging(share: Float[np.ndarray, "T M"], merging: Merging | None) -> Shares:
    if merging is None:
        return share
    return np.take_along_axis(share, np.asarray(merging.places), axis=1) * np.asarray(merging.shares)


def _before_attention(share: Float[np.ndarray, "T M"], block: BlockTrace) -> Shares:
    share = _before_merging(share, block.merging)
    seen = np.einsum("tn,tgnm->tgm", share, np.asarray(block.attention, np.float64))
    attended = np.zeros_like(share)
    np.add.at(attended, np.asarray(block.frames), seen)
    share = (share + attended) / 2
    if block.over_time is not None:
        attended = np.einsum("tn,ntu->un", share, np.asarray(block.over_time, np.float64))
        share = (share + attended) / 2
    return share
