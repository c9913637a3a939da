"""Tabulate the cost of a config: blocks, parameters, memory, and the schedules that fit a budget.

The model is built of shapes alone, so it needs no dataset, no weights and no accelerator. The command is
`inti_jax/plan.py`.
"""

import dataclasses
import functools
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inti_jax import config
from inti_jax.config import Config
from inti_jax.config.resolution import Resolution, height_width
from inti_jax.cost import topology
from inti_jax.errors import UsageError

if TYPE_CHECKING:
    from inti_jax.config.backbones import Backbone
    from inti_jax.cost.budget import Compressing, Merging
    from inti_jax.models.compressors import Compressor
    from inti_jax.runs.record import RunRecord

log = logging.getLogger("inti_jax")


# Classes of the datasets that the package renders itself.
_EMBEDDED_CLASSES = {"motion_digits": 10, "still_digits": 40}


# Width of the space that images and texts share in the published models.
_EMBED = {
    "clip_vit_b32": 512,
    "clip_vit_b16": 512,
    "clip_vit_b16_plus_240": 640,
    "clip_vit_l14": 768,
    "clip_vit_l14_336": 768,
    "clip_vit_h14": 1024,
    "clip_vit_g14": 1024,
    "clip_vit_bigg14": 1280,
    "siglip_vit_b32": 768,
    "siglip_vit_b16": 768,
    "siglip_vit_l16": 1024,
    "siglip_vit_g16": 1536,
    "siglip_so400m_14": 1152,
    "siglip_so400m_16": 1152,
}


_LISTED = 10  # schedules for each group and number of compressors


@dataclasses.dataclass(frozen=True)
class Part:
    """The cost of the embedding, or of the head with the tower's pooling."""

    gmacs: float  # of one view
    added_params: int
    activation_mib: float  # of one view in training; see activations.py


@dataclasses.dataclass(frozen=True)
class Block:
    """The cost of one block, with the layers that the method adds to it and the compressor after it.

    `frames` and `tokens` are those that enter.
    """

    index: int  # from 1
    frames: int
    tokens: int  # of each frame
    gmacs: float  # of one view at inference
    gmacs_training: float
    added_params: int
    activation_mib: float


@dataclasses.dataclass(frozen=True)
class Stream:
    """The cost of a prediction in a stream at inference: of one more window, `every` frames on."""

    every: int
    gmacs_per_hop: float
    share: float  # of gmacs_per_view
    # Number of first blocks that are computed once for each frame; None where not even the tokens before them
    # are.
    blocks_once: int | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The cost of a config. 1 MAC is one multiply-accumulate.

    Figures of inference are with everything folded into the backbone that can be.
    """

    backbone: str
    adaptation: str
    freezing: str  # what trains other than by the method's default, in words; "" if nothing
    temporal: str
    compression: str
    group: int | None  # frames that become one at each compressor; None if there is none
    after: tuple[int, ...]
    frames: int
    resolution: Resolution  # pixels of a square's side, or height and width
    dtype: str
    classes: int
    gmacs_per_view: float
    gmacs_per_view_training: float  # the forward pass as trained
    gmacs_per_view_uncompressed: float
    share: float  # gmacs_per_view by gmacs_per_view_uncompressed
    views: int  # of each video, in evaluation
    gmacs_per_video: float
    params_total: int
    params_trainable: int
    trained_file_mib: float  # of `convert --to trained`: the trained parameters in float32
    activation_mib: float  # of one view in training
    embedding: Part
    blocks: list[Block]
    head: Part
    stream: Stream


@dataclasses.dataclass(frozen=True)
class Budget:
    """The schedules of a compressor whose share is at most `share`, the best use of that share first."""

    share: float
    compression: str
    schedules: "list[Compressing] | list[Merging]"


def make_plan(
    record: "RunRecord", budget: float | None = None, every: int | None = None
) -> tuple[Plan, Budget | None]:
    """Make the plan of a run and, with `budget`, list the schedules that fit it.

    `budget` is a share above 0 and up to 1. `every` is the distance of two windows in a stream, by default
    that of `inti_jax.stream`. Raises UsageError where it is no multiple of the model's `ratio`.
    """
    # Imported late: --help and a mistake in the config should not wait for JAX.
    from inti_jax.config.backbones import called
    from inti_jax.cost import activations
    from inti_jax.models import freezing, sliding
    from inti_jax.models.parameters import parameter_shapes
    from inti_jax.models.video import UNCOMPRESSED
    from inti_jax.runs import state

    settings = record.config
    model = state.abstract_model(record)
    frames, views = settings.data.num_frames, settings.eval.clips * settings.eval.crops
    method, compression = settings.model.adaptation, settings.model.compression

    sizes = {path: math.prod(shape.shape) for path, shape in parameter_shapes(model).items()}

    def parameters(*prefixes: str) -> int:
        return sum(size for path, size in sizes.items() if path.startswith(prefixes))

    trainable = sum(sizes[path] for path in freezing.trained(settings.model, sizes))
    inference, training = (model.block_costs(frames, folded=folded) for folded in (True, False))
    saved = activations.saved(model, settings.model, frames)
    blocks = []
    for cost, as_trained, kept in zip(inference, training, saved.blocks, strict=True):
        added = parameters(f"adapters.{cost.index - 1}.")
        if cost.index in model.after:
            added += parameters(f"compressors.{model.after.index(cost.index)}.")
        blocks.append(
            Block(
                index=cost.index,
                frames=cost.frames,
                tokens=cost.tokens,
                gmacs=cost.macs / 1e9,
                gmacs_training=as_trained.macs / 1e9,
                added_params=added,
                activation_mib=kept / 2**20,
            )
        )

    if every is None:
        every = sliding.default_every(frames, model.ratio)
    sliding.check_every(every, model.ratio)
    per_view = model.macs(frames, folded=True)
    per_hop = sliding.hop_macs(model, frames, every, folded=True)
    uncompressed = model.macs(frames, folded=True, schedule=UNCOMPRESSED)
    plan = Plan(
        backbone=called(settings.model.backbone, record.backbone.size),
        adaptation=method,
        freezing=freezing.summary(settings.model),
        temporal=settings.model.temporal,
        compression=compression.kind,
        group=compression.group if compression.compresses_after else None,
        after=compression.after,
        frames=frames,
        resolution=settings.data.resolution,
        dtype=settings.train.dtype,
        classes=len(record.dataset.labels),
        gmacs_per_view=per_view / 1e9,
        gmacs_per_view_training=model.macs(frames) / 1e9,
        gmacs_per_view_uncompressed=uncompressed / 1e9,
        share=per_view / uncompressed,
        views=views,
        gmacs_per_video=views * per_view / 1e9,
        params_total=sum(sizes.values()),
        params_trainable=trainable,
        trained_file_mib=4 * trainable / 2**20,
        activation_mib=(saved.embedding + sum(saved.blocks) + saved.head) / 2**20,
        embedding=Part(
            frames * model.tower.embed_macs() / 1e9, parameters("temporal."), saved.embedding / 2**20
        ),
        blocks=blocks,
        head=Part(
            (model.pooling_macs(frames) + model.head.macs()) / 1e9, parameters("head."), saved.head / 2**20
        ),
        stream=Stream(every, per_hop / 1e9, per_hop / per_view, sliding.blocks_apart(model)),
    )
    return plan, None if budget is None else _fitting(model, compression, frames, budget)


def _fitting(model: Any, compression: config.Compression, frames: int, share: float) -> Budget:
    from flax import nnx

    from inti_jax.cost import budget
    from inti_jax.models.compressors import build_compressor
    from inti_jax.models.rngs import make_rngs

    if compression.kind == "tome":
        blocks = compression.after or range(1, len(model.adapters) + 1)
        return Budget(share, "tome", budget.mergings(model, blocks, frames, share, _LISTED))
    # Without compression, list the schedules of InTI.
    chosen = compression if compression.kind != "none" else dataclasses.replace(compression, kind="inti")

    def build(group: config.Group) -> "Compressor":
        return build_compressor(
            dataclasses.replace(chosen, group=group),
            model.size.width,
            model.tower.grid,
            prefix_tokens=model.tower.prefix_tokens,
            dtype=model.dtype,
            rngs=make_rngs(0),
        )

    compressors = [nnx.eval_shape(functools.partial(build, group)) for group in config.GROUPS]
    return Budget(share, chosen.kind, budget.compressing(model, compressors, frames, share, _LISTED))


def record_of(settings: Config, classes: int | None = None) -> "RunRecord":
    """Make the record of a run of this config, with numbers as the names of its classes.

    `classes` is used where the dataset is not prepared. Raises UsageError where the number of classes is not
    known, or the backbone is not.
    """
    from inti_jax.runs.record import Dataset, RunRecord

    numbers = range(_classes(settings.data, classes))
    dataset = Dataset(settings.data.name, "", "", tuple(map(str, numbers)))
    return RunRecord(settings, dataset, _backbone(settings))


def _classes(data: config.Data, given: int | None) -> int:
    """Return the number of classes: of the prepared dataset, as given, or of the official dataset.

    Raises UsageError where none of these is known.
    """
    from inti_jax.data import manifest
    from inti_jax.data.builders import registry
    from inti_jax.data.dataset import find_dataset

    directory = find_dataset(data.name, data.data_dir)
    if directory is not None:
        found = len(manifest.read(directory).labels)
        if given not in (None, found):
            log.warning("%s has %d classes: ignoring --classes %d", directory, found, given)
        return found
    official = {name: entry.classes for name, entry in registry.OFFICIAL.items()}
    known = given or (official | _EMBEDDED_CLASSES).get(data.name)
    if known is None:
        raise UsageError(
            f"dataset `{data.name}` is not in {data.data_dir}, so its number of classes is unknown: give "
            "--classes K"
        )
    return known


def _backbone(settings: Config) -> "Backbone":
    """Return the backbone that `model.pretrained` describes or, where that is absent, the published one."""
    from inti_jax.config.backbones import AUTO, published

    model = settings.model
    if model.backbone == AUTO or (model.pretrained != "random" and Path(model.pretrained).exists()):
        from inti_jax.runs.backbone import find_backbone

        return find_backbone(settings)
    if model.head.init == "text" and model.backbone not in _EMBED:
        raise UsageError(
            f'config: `model.head.init` is "text" and {model.pretrained} is not there: without it, the width '
            f"of the space that {model.backbone} shares with texts is not known: give the file as "
            "--config.model.pretrained=F"
        )
    embed = _EMBED[model.backbone] if model.head.init == "text" else None
    return dataclasses.replace(published(model.backbone), embed=embed)


def render(plan: Plan) -> str:
    """Format a plan as a table of text and a summary."""
    from inti_jax.cli.tables import text_table

    def row(name: str, frames: str, tokens: str, *figures: float, parameters: int, mib: float) -> list[str]:
        return [name, frames, tokens, *(f"{x:.4g}" for x in figures), f"{parameters:,}", f"{mib:.1f}"]

    def part(name: str, part: Part) -> list[str]:
        return row(
            name, "", "", part.gmacs, part.gmacs, parameters=part.added_params, mib=part.activation_mib
        )

    headers = ["", "frames", "tokens", "GMACs", "as trained", "added parameters", "activations MiB"]
    cells = [part("embedding", plan.embedding)]
    for block in plan.blocks:
        behind = f", {plan.compression}" if block.index in plan.after else ""
        cells.append(
            row(
                f"block {block.index}{behind}",
                str(block.frames),
                str(block.tokens),
                block.gmacs,
                block.gmacs_training,
                parameters=block.added_params,
                mib=block.activation_mib,
            )
        )
    cells.append(part("head", plan.head))
    added = plan.embedding.added_params + sum(block.added_params for block in plan.blocks)
    cells.append(
        row(
            "one view",
            "",
            "",
            plan.gmacs_per_view,
            plan.gmacs_per_view_training,
            parameters=added + plan.head.added_params,
            mib=plan.activation_mib,
        )
    )
    compression = plan.compression + ("" if plan.group is None else f" (group {plan.group})")
    method = plan.adaptation + (f" ({plan.freezing})" if plan.freezing else "")
    method += "" if plan.temporal == "none" else f" with temporal {plan.temporal}"
    height, width = height_width(plan.resolution)
    lines = [
        f"{plan.backbone}, {method}, compression {compression}: {plan.frames} frames of "
        f"{height} x {width}, {plan.classes} classes",
        "",
        text_table(headers, cells),
        "",
        f"cost         {100 * plan.share:.2f} % of the {plan.gmacs_per_view_uncompressed:.5g} GMACs a view "
        "without compression",
        f"a video      {plan.gmacs_per_video:.5g} GMACs in {plan.views} view{'s' * (plan.views > 1)}",
        f"in a stream  {plan.stream.gmacs_per_hop:.5g} GMACs a prediction, every {plan.stream.every} frames: "
        f"{100 * plan.stream.share:.2f} % of a view",
        f"parameters   {plan.params_trainable:,} of {plan.params_total:,} train: "
        f"{plan.trained_file_mib:.1f} MiB as a file of only these",
        "",
        "GMACs are for one view at inference, with linear modules folded into the backbone; `as trained`",
        "is the forward pass in training. Activations are the values kept for the backward pass, in "
        f"{plan.dtype}.",
    ]
    return "\n".join(lines)


def render_budget(budget: Budget) -> str:
    """Format the schedules that fit a budget as a table of text."""
    from inti_jax.cli.tables import text_table
    from inti_jax.cost.budget import Compressing

    title = f"{budget.compression} with at most {100 * budget.share:g} % of the cost without compression"
    if not budget.schedules:
        return f"{title}: none"
    cells = []
    for found in budget.schedules:
        if isinstance(found, Compressing):
            where = f"group={found.group} after={found.after}"
        else:
            where = f"r={found.r}"
        cells.append([where, f"{100 * found.share:.2f} %", f"{found.gmacs_per_view:.4g}"])
    return f"{title}\n\n" + text_table(["model.compression", "share", "GMACs/view"], cells)


def render_compiled(compiled: "topology.Compiled") -> str:
    """Format a compiled training step as text."""
    from inti_jax.cli.tables import text_table

    mesh = ", ".join(f"{axis} {size}" for axis, size in compiled.mesh.items())
    hbm = "" if compiled.hbm_gib is None else f" of {compiled.hbm_gib:g} GiB HBM"
    peak = "more" if compiled.peak_hbm_gib is None else f"{compiled.peak_hbm_gib:.2f}"
    lines = [
        f"training step for {compiled.topology}: {compiled.devices} devices (mesh: {mesh}), compiled in "
        f"{compiled.seconds:.0f} s",
        "",
        f"memory       {peak}{hbm} a device: {'fits' if compiled.fits else 'does NOT fit'}; parameters and "
        f"optimizer state are {compiled.state_gib:.2f} GiB of it",
    ]
    if compiled.remat:
        lines.append("backward     computes the blocks again (model.remat)")
    if not compiled.fits:
        return "\n".join([*lines, *(f"remedy       {remedy}" for remedy in compiled.remedies)])
    lines += [
        f"a step       {compiled.flops_per_device:.4g} FLOPs (2 for a MAC, forward and backward), "
        f"{compiled.bytes_per_device:.4g} bytes: {compiled.arithmetic_intensity:.0f} FLOPs a byte",
    ]
    if compiled.hbm_bytes_per_device is not None:
        lines.append(f"             {compiled.hbm_bytes_per_device:.4g} of these bytes are in HBM")
    if compiled.roofline is not None:
        bound = compiled.roofline
        network = f", {1000 * bound.network:.1f} by the network between slices" if bound.network else ""
        lines.append(
            f"at least     {1000 * bound.compute:.1f} ms by compute, {1000 * bound.hbm:.1f} by memory, "
            f"{1000 * bound.interconnect:.1f} by interconnect{network}: {bound.binds} binds"
        )
    if compiled.collectives:
        cells = [
            [
                one.kind + (" between slices" if one.between == "slices" else ""),
                str(one.count),
                f"{one.bytes / 1e6:.2f}",
            ]
            for one in compiled.collectives
        ]
        lines += ["", text_table(["collective", "count", "MB"], cells)]
    return "\n".join(lines)
