"""Count training MACs and peak FLOPs for model FLOP utilisation (MFU, arXiv:2204.02311)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from inti_jax.config import Model
from inti_jax.host.chips import Device, chip_of
from inti_jax.models import freezing, parameters
from inti_jax.models.adapters import PLACES, BlockAdapters
from inti_jax.models.block import Block
from inti_jax.models.video import VideoModel
from inti_jax.models.vit import EMBEDDING


def peak_flops(devices: Sequence[Device]) -> float | None:
    """Sum the peak FLOPs per second of `devices` in bfloat16; None where that of one is not known."""
    chips = [chip_of(device) for device in devices]
    return None if None in chips else sum(chip.flops for chip in chips if chip is not None)


def training_macs(model: VideoModel, settings: Model, frames: int) -> int:
    """Count the multiply-accumulates of training on one view of `frames` frames, forward and backward.

    Only what `settings` need of the backward pass counts. A matrix product costs once more for the gradient
    of its input, if anything before it trains, and once more for the gradient of its matrix, if that trains.
    What is computed again to save memory does not count. `model` may be abstract.
    """
    shapes = parameters.parameter_shapes(model)
    trained = freezing.trained(settings, shapes)

    def trains(*prefixes: str) -> bool:
        return any(path.startswith(prefixes) for path in trained)

    total = frames * model.tower.embed_macs() * (1 + trains("tower.patch_embed"))
    reached = trains(*EMBEDDING, "temporal.")  # True once anything so far trains
    compressors = iter(enumerate(model.compressors))
    for cost in model.block_costs(frames):
        block, adapters = model.tower.blocks[cost.index - 1], model.adapters[cost.index - 1]
        macs = block.macs_by_kind(
            adapters,
            cost.tokens,
            cost.frames,
            merging=model.schedule.merging.get(cost.index, 0),
            folded=False,
        )
        total += cost.frames * sum(macs)
        prefix = f"tower.blocks.{cost.index - 1}."
        tower_trains = trains(prefix)
        if reached or tower_trains or trains(f"adapters.{cost.index - 1}."):
            # ToMe's choice has no gradient. A product of activations has two, one for each side.
            share = _share_of_matrices(shapes, trained, prefix)
            backward = round(macs.matrices * (1 + share)) + 2 * macs.products + 2 * macs.additions
            if not reached and not tower_trains:  # else the LayerNorm before all of them trains
                backward -= _below_the_first(block, adapters, cost.tokens)
            total += cost.frames * backward
            reached = True
        if cost.index in model.after:
            number, compressor = next(compressors)
            compressor_trains = trains(f"compressors.{number}.")
            total += compressor.macs(cost.frames) * (1 + reached + compressor_trains)
            reached = reached or compressor_trains
    reached = reached or trains("tower.ln_post.")
    pooling_trains = trains("tower.pooling.")
    total += model.pooling_macs(frames) * (1 + reached + pooling_trains)
    return total + model.head.macs() * (1 + trains("head.") + (reached or pooling_trains))


def _share_of_matrices(shapes: Mapping[str, Any], trained: frozenset[str], prefix: str) -> float:
    """Compute the share of the block's matrices that trains, weighted by size."""
    sizes = {
        path: math.prod(shape.shape)
        for path, shape in shapes.items()
        if path.startswith(prefix) and path.endswith(".kernel")
    }
    return sum(size for path, size in sizes.items() if path in trained) / sum(sizes.values())


def _below_the_first(block: Block, adapters: BlockAdapters, tokens: int) -> int:
    """Count the backward MACs of a frame that the first block with trained modules does not need.

    They are those of what comes before the first of these modules, which needs no gradient.
    """
    places = list(adapters.by_place())
    attention, products = block.attention_macs(tokens), block.attention_product_macs(tokens)
    if places and PLACES.index(places[0]) >= PLACES.index("before_mlp"):
        return attention + products  # the products have two gradients
    if places and places[0] in ("lora_query", "lora_key", "lora_value"):
        return 3 * (attention - products) // 4  # queries, keys and values are three of four matrices
    return 0
