"""Compute what a run's model costs, block by block, against the same model without compression."""

import dataclasses
import math

from inti_jax.runs.record import RunRecord


@dataclasses.dataclass(frozen=True)
class Block:
    """A block with the modules that a method adds to it and the compressor behind it, for one view."""

    index: int  # from 1
    frames: int  # on entry
    tokens: int  # of each frame, on entry
    gmacs: float
    uncompressed: float  # GMACs without any compression


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a model at inference, with everything folded in that can be."""

    gmacs: float  # per view
    uncompressed: float
    views: int  # of each video, in evaluation
    parameters: int
    trained: int
    compression: str
    blocks: list[Block]

    @property
    def share(self) -> float:
        """The GMACs as a share of those without compression."""
        return self.gmacs / self.uncompressed


def compute(record: RunRecord) -> Cost:
    """Compute the cost of a run's model from shapes alone."""
    from inti_jax.models import freezing, parameters
    from inti_jax.models.video import UNCOMPRESSED
    from inti_jax.runs import state

    settings = record.config
    model = state.abstract_model(record)
    frames = settings.data.num_frames
    sizes = {path: math.prod(shape.shape) for path, shape in parameters.parameter_shapes(model).items()}
    pairs = zip(
        model.block_costs(frames, folded=True),
        model.block_costs(frames, folded=True, schedule=UNCOMPRESSED),
        strict=True,
    )
    return Cost(
        gmacs=model.macs(frames, folded=True) / 1e9,
        uncompressed=model.macs(frames, folded=True, schedule=UNCOMPRESSED) / 1e9,
        views=settings.eval.clips * settings.eval.crops,
        parameters=sum(sizes.values()),
        trained=sum(sizes[path] for path in freezing.trained(settings.model, sizes)),
        compression=settings.model.compression.name,
        blocks=[
            Block(ours.index, ours.frames, ours.tokens, ours.macs / 1e9, none.macs / 1e9)
            for ours, none in pairs
        ],
    )
