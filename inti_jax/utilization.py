"""How much of what the devices can do a run does: model FLOP utilisation (MFU, arXiv:2204.02311)."""

import jax

from inti_jax import state
from inti_jax.chips import chip_of
from inti_jax.models.video import VideoModel

_EMBEDDING = ("tower.patch_embed", "tower.class_embedding", "tower.positional_embedding", "tower.ln_pre")


def peak_flops(mesh: jax.sharding.Mesh) -> float | None:
    """FLOPs a second of all the mesh's devices together, in bfloat16; None where it is not known."""
    chips = [chip_of(device) for device in mesh.devices.flat]
    return None if None in chips else sum(chip.flops for chip in chips if chip is not None)


def training_macs(model: VideoModel, adaptation: str, frames: int) -> int:
    """Multiply-accumulates of one view of `frames` frames in training: forward and backward pass.

    Of the backward pass that which `adaptation` needs: a matrix product costs once more for the gradient of
    its input, if anything before it trains, and once more for that of its matrix, if that trains. What is
    computed again to save memory does not count. In the first block that trains, all counts as if
    something before it did. `model` may be abstract.
    """
    trained = [path for path in state.parameter_shapes(model) if state.trains(adaptation, path)]

    def trains(*prefixes: str) -> bool:
        return any(path.startswith(prefixes) for path in trained)

    total = frames * model.tower.embed_macs() * (1 + trains("tower.patch_embed"))
    reached = trains(*_EMBEDDING, "temporal.")  # whether anything so far trains
    compressors = iter(enumerate(model.compressors))
    for cost in model.block_costs(frames):
        block, adapters = model.tower.blocks[cost.index - 1], model.adapters[cost.index - 1]
        macs = adapters.macs_by_kind(
            block, cost.tokens, cost.frames, merging=model.schedule.merging.get(cost.index, 0), folded=False
        )
        tower_trains = trains(f"tower.blocks.{cost.index - 1}.")
        reached = reached or tower_trains or trains(f"adapters.{cost.index - 1}.")
        total += cost.frames * sum(macs)
        if reached:
            # ToMe's choice has no gradient; of a product of activations, both sides have one.
            total += cost.frames * (
                macs.matrices * (1 + tower_trains) + 2 * macs.products + 2 * macs.additions
            )
        if cost.index in model.after:
            number, compressor = next(compressors)
            compressor_trains = trains(f"compressors.{number}.")
            reached = reached or compressor_trains
            total += compressor.macs(cost.frames) * (1 + reached + compressor_trains)
    return total + model.head.macs() * (2 + reached)
