"""Search for the compression schedules that fit a budget, for `plan --budget`."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

from inti_jax.models.compressors import Compressor
from inti_jax.models.video import UNCOMPRESSED, Schedule, VideoModel

_MOST_LAYERS = 3


@dataclasses.dataclass(frozen=True)
class Compressing:
    """A schedule in which `group` frames become one after each of the blocks `after`.

    `share` is its cost relative to the uncompressed model's, at inference.
    """

    group: int
    after: tuple[int, ...]
    share: float
    gmacs_per_view: float


@dataclasses.dataclass(frozen=True)
class Merging:
    """A schedule in which each merging block is asked to merge away `r` patches of a frame.

    `share` is as in `Compressing`.
    """

    r: int
    share: float
    gmacs_per_view: float


def compressing(
    model: VideoModel, compressors: Iterable[Compressor], frames: int, budget: float, most: int
) -> list[Compressing]:
    """List the schedules of one to three layers and a share of at most `budget`.

    All layers of a schedule are like one of `compressors`. For each of these and each number of layers, the
    list has the `most` schedules that use the budget best. T has to be a multiple of the product of the
    layers' ratios. No schedule compresses after the last block, where it would save nothing.
    """
    whole = model.macs(frames, folded=True, schedule=UNCOMPRESSED)
    result = []
    for compressor in compressors:
        ratio = compressor.ratio
        for count in range(1, _MOST_LAYERS + 1):
            if frames % ratio**count:
                break
            fitting = [
                (macs, after)
                for after, macs in _compressed(model, compressor, frames, count)
                if macs <= budget * whole
            ]
            fitting.sort(key=lambda found: (-found[0], found[1]))
            result += [Compressing(ratio, after, macs / whole, macs / 1e9) for macs, after in fitting[:most]]
    return result


def mergings(
    model: VideoModel, blocks: Sequence[int], frames: int, budget: float, most: int
) -> list[Merging]:
    """List the values of r with a share of at most `budget`: the `most` that use it best.

    r is the same in each of `blocks`. Values beyond half of the patches are not tried: r no longer matters
    there.
    """
    whole = model.macs(frames, folded=True, schedule=UNCOMPRESSED)
    costs = {
        r: model.macs(frames, folded=True, schedule=Schedule({}, dict.fromkeys(blocks, r)))
        for r in range((model.tower.tokens - model.tower.prefix_tokens) // 2 + 1)
    }
    fitting = sorted((-macs, r) for r, macs in costs.items() if macs <= budget * whole)
    return [Merging(r, -macs / whole, -macs / 1e9) for macs, r in fitting[:most]]


def _compressed(
    model: VideoModel, compressor: Compressor, frames: int, count: int
) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield every choice of `count` blocks to put `compressor` after, with the MACs of a view.

    The cost of a block depends on its T alone, so it is summed once for each T.
    """
    last = len(model.adapters)
    left = [frames // compressor.ratio**k for k in range(count + 1)]
    # up_to[k][b]: MACs of blocks 1 to b at the T after k layers. layers[k]: of the layer that takes this T.
    up_to = [
        [
            0,
            *itertools.accumulate(
                cost.macs for cost in model.block_costs(t, folded=True, schedule=UNCOMPRESSED)
            ),
        ]
        for t in left
    ]
    layers = [compressor.macs(t) for t in left[:-1]]
    pooling = model.tower.pooling.macs(model.tower.tokens, left[-1])
    fixed = frames * model.tower.embed_macs() + pooling + model.head.macs() + sum(layers)
    for after in itertools.combinations(range(1, last), count):
        edges = (0, *after, last)
        stages = itertools.pairwise(edges)
        yield after, fixed + sum(up_to[k][end] - up_to[k][start] for k, (start, end) in enumerate(stages))
