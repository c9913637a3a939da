"""Search for the compression schedules that fit a budget, for `plan --budget`."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from inti_jax.models.compressors import Compressor
from inti_jax.models.video import UNCOMPRESSED, Schedule, VideoModel

_MOST_HALVINGS = 3


@dataclasses.dataclass(frozen=True)
class Halvings:
    """A schedule that halves the frames after the blocks `after`.

    `share` is its cost relative to the uncompressed model's, at inference.
    """

    halvings: int
    after: tuple[int, ...]
    share: float
    gmacs_per_view: float


@dataclasses.dataclass(frozen=True)
class Merging:
    """A schedule in which each merging block is asked to merge away `r` patches of a frame.

    `share` is as in `Halvings`.
    """

    r: int
    share: float
    gmacs_per_view: float


def halvings(
    model: VideoModel, compressor: Compressor, frames: int, budget: float, most: int
) -> list[Halvings]:
    """List the schedules with one to three halvings by `compressor` and a share of at most `budget`.

    For each number of halvings these are the `most` schedules that use the budget best. T has to be divisible
    by 2 for each halving. No schedule halves after the last block, where it would save nothing.
    """
    whole = model.macs(frames, folded=True, schedule=UNCOMPRESSED)
    result = []
    for count in range(1, _MOST_HALVINGS + 1):
        if frames % 2**count:
            break
        fitting = [
            (macs, after)
            for after, macs in _halved(model, compressor, frames, count)
            if macs <= budget * whole
        ]
        fitting.sort(key=lambda found: (-found[0], found[1]))
        result += [Halvings(count, after, macs / whole, macs / 1e9) for macs, after in fitting[:most]]
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
        for r in range((model.tower.tokens - 1) // 2 + 1)
    }
    fitting = sorted((-macs, r) for r, macs in costs.items() if macs <= budget * whole)
    return [Merging(r, -macs / whole, -macs / 1e9) for macs, r in fitting[:most]]


def _halved(
    model: VideoModel, compressor: Compressor, frames: int, count: int
) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield every choice of `count` blocks to halve the frames after, with the MACs of a view.

    The cost of a block depends on its T alone, so it is summed once for each T.
    """
    last = len(model.adapters)
    # up_to[k][b]: MACs of blocks 1 to b at T / 2**k. layers[k]: of the layer that halves T / 2**k.
    up_to = [
        [
            0,
            *itertools.accumulate(
                cost.macs for cost in model.block_costs(t, folded=True, schedule=UNCOMPRESSED)
            ),
        ]
        for t in (frames // 2**k for k in range(count + 1))
    ]
    layers = [compressor.macs(frames // 2**k) for k in range(count)]
    fixed = frames * model.tower.embed_macs() + model.head.macs() + sum(layers)
    for after in itertools.combinations(range(1, last), count):
        edges = (0, *after, last)
        stages = itertools.pairwise(edges)
        yield after, fixed + sum(up_to[k][end] - up_to[k][start] for k, (start, end) in enumerate(stages))
