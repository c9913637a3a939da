"""Run a video model on windows that slide over a stream, without computing twice what does not change.

Up to the first block that relates frames, what a model makes of a frame is the same in every window. With a
compressor that holds for each group that it blends, also through the blocks behind. So a stream keeps what
leaves those blocks, and a window goes on from there. Where no block relates frames, that is a feature of each
frame that the compressors left, and a window is only their mean and the head.

Windows start at multiples of the model's `ratio` of frames, so that their groups are those of the stream.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped, UInt8

from inti_jax.errors import UsageError
from inti_jax.models.video import Stage, VideoModel


class Kept(NamedTuple):
    """The values that a stream keeps of consecutive frames, a row for each that the compressors left of them.

    `values` are pixels [S, H, W, 3], tokens [S, N, D] or features [S, D], by `blocks_apart`. `sizes` are the
    patches that each token stands for, None as long as that is one.
    """

    values: Shaped[Array, "S ..."]
    sizes: Float[Array, "S N"] | None = None


def blocks_apart(model: VideoModel) -> int | None:
    """Count the first blocks in which no frame depends on others, beyond its group in a compressor.

    None where the tokens before them depend on a frame's place in the window, by a temporal embedding.
    """
    if hasattr(model, "temporal"):
        return None
    related = (index for index, added in enumerate(model.adapters) if added.relates_frames)
    return next(related, len(model.adapters))


def enter(model: VideoModel, frames: UInt8[Array, "n H W 3"]) -> Kept:
    """Compute what a stream keeps of `frames`, a multiple of the model's `ratio` of them."""
    first, rest = _split(model, len(frames))
    if first is None:
        return Kept(frames)
    x, sizes, _ = model.run_stages(first, model.embed(frames[None]), None)
    return Kept(x, sizes) if rest else Kept(model.pool_frames(x, sizes, 1)[0])


def logits(model: VideoModel, kept: Sequence[Kept], frames: int) -> Float[Array, " K"]:
    """Compute the logits of the window of `frames` frames of which `kept` are the parts, in order."""
    first, rest = _split(model, frames)
    values = jnp.concatenate([part.values for part in kept])
    if first is None:
        return model(values[None])[0]
    if not rest:
        return model.head(model.average(values[None]))[0]
    sizes = [part.sizes for part in kept if part.sizes is not None]
    x, after, _ = model.run_stages(rest, values, jnp.concatenate(sizes) if sizes else None)
    return model.head(model.pool(x, after, 1))[0]


def hop_macs(model: VideoModel, frames: int, every: int, *, folded: bool = False) -> int:
    """Count the multiply-accumulates of a prediction in a stream: one more window of `frames` frames.

    It starts `every` frames behind the one before it. See `VideoModel.macs`.
    """
    apart, new = blocks_apart(model), min(every, frames)
    once = 0 if apart is None else apart
    blocks = model.block_costs(new, folded=folded)[:once] + model.block_costs(frames, folded=folded)[once:]
    embedded = frames if apart is None else new
    pooled = new if apart == len(model.adapters) else frames
    total = embedded * model.tower.embed_macs() + sum(block.macs for block in blocks)
    return total + model.pooling_macs(pooled) + model.head.macs()


def default_every(frames: int, ratio: int) -> int:
    """Choose the hop of windows of `frames` frames: half of one, or the next multiple of `ratio` above."""
    return -(-frames // (2 * ratio)) * ratio


def check_every(every: int, ratio: int) -> None:
    """Raise UsageError where windows that start `every` frames apart would not have groups in common.

    `ratio` frames become one in the model.
    """
    if every < 1 or every % ratio:
        wanted = "it should be at least 1"
        if ratio > 1:
            wanted = f"this model takes a multiple of {ratio}, since its compressors make {ratio} frames one"
        raise UsageError(f"`every` is {every}: {wanted}")


def _split(model: VideoModel, frames: int) -> tuple[list[Stage] | None, list[Stage]]:
    """Split the stages of a clip where frames first depend on others, with the compressor there before it.

    The first part is None where that is before the first block.
    """
    apart, stages = blocks_apart(model), model.stages(frames)
    if apart is None:
        return None, stages
    first = [stage for stage in stages if stage.blocks.stop <= apart]
    rest = stages[len(first) :]
    if rest and rest[0].blocks.start < apart:
        start, stop = rest[0].blocks.start, rest[0].blocks.stop
        first.append(dataclasses.replace(rest[0], blocks=range(start, apart), compressor=None))
        rest[0] = dataclasses.replace(rest[0], blocks=range(apart, stop))
    return first, rest
