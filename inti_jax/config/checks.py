"""Check a configuration for what its types cannot express, such as values that exclude each other.

Each check yields one line for each problem. It names the keys, their values and what would be valid.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Iterator

from inti_jax.config import schema as config
from inti_jax.config.backbones import AUTO, BackboneSize
from inti_jax.config.resolution import nearest_multiples


def problems(settings: config.Config) -> Iterator[str]:
    """Yield one line for each problem with `settings` that shows without the size of the backbone."""
    yield from _weights(settings.model)
    yield from _compression(settings.model, settings.data.num_frames)
    yield from _adaptation(settings.model, settings.data.num_frames)
    yield from _freezing(settings.model)
    yield from _data(settings)
    yield from _training(settings.train)
    yield from _loss(settings)
    yield from _mesh(settings)


def size_problems(settings: config.Config, size: BackboneSize) -> Iterator[str]:
    """Yield one line for each problem with `settings` on a backbone of this size."""
    model, data, tensor = settings.model, settings.data, settings.mesh.tensor
    backbone = f"the backbone in {model.pretrained}" if model.backbone == AUTO else model.backbone
    yield from _depth(model, size.layers, f"{size.layers}, the depth of {backbone}")
    shifts = model.zero_i2v.shifts
    moved = sum(count for _, count in shifts)
    if "shift" in (model.temporal, config.TEMPORAL_OF.get(model.adaptation)) and moved > size.heads:
        yield (
            f"`model.zero_i2v.shifts` is {shifts}: it moves {moved} heads, and {backbone} has {size.heads}"
        )
    if any(side % size.patch for side in data.height_width):
        each = "it" if isinstance(data.resolution, int) else "each side"
        nearest = " or ".join(map(str, nearest_multiples(data.resolution, size.patch)))
        yield (
            f"`data.resolution` is {data.resolution}: {each} should be a multiple of {size.patch}, the "
            f"patch size of {backbone}, such as {nearest}"
        )
    if size.heads % max(tensor, 1):  # what divides the heads divides the width and the MLP's channels too
        yield f"`mesh.tensor` is {tensor}: it should divide the {size.heads} heads of {backbone}"


def _depth(model: config.Model, layers: int, at_most: str) -> Iterator[str]:
    """Yield the problems of block numbers; `at_most` names the highest one that there is."""
    compression = model.compression
    if any(block > layers for block in compression.after):
        yield (
            f"`model.compression.after` is {compression.after}: it should list increasing block numbers from "
            f"1 to {at_most}"
        )
    merging = len(compression.after) or layers
    if compression.kind == "tome" and isinstance(compression.r, tuple) and len(compression.r) != merging:
        yield (
            f"`model.compression.r` has {len(compression.r)} numbers: it should have one for each of the "
            f"{merging} blocks that merge, or be one number"
        )
    for key, blocks in (("freeze_blocks", model.freeze_blocks), ("unfreeze_last", model.unfreeze_last)):
        if blocks > layers:
            yield f"`model.{key}` is {blocks}: it should be at most {at_most}"
    if model.unfreeze_last and model.adaptation == "full":
        yield (
            f'`model.unfreeze_last` is {model.unfreeze_last} and `model.adaptation` is "full", which trains '
            f"all: set `model.freeze_blocks` to {max(layers - model.unfreeze_last, 0)}"
        )


def _weights(model: config.Model) -> Iterator[str]:
    if not model.pretrained:
        yield '`model.pretrained` is empty: set it to a file that `convert` wrote, or to "random"'
    if model.pretrained == "random":
        if model.backbone == AUTO:
            yield (
                f'`model.backbone` is "{AUTO}" and `model.pretrained` is "random": name the backbone, or '
                "give the file whose backbone to take"
            )
        if model.adaptation != "full":
            yield (
                f'`model.adaptation` is "{model.adaptation}" and `model.pretrained` is "random": '
                "a frozen backbone needs converted weights"
            )
        if model.head.init == "text":
            yield (
                '`model.head.init` is "text" and `model.pretrained` is "random": '
                "class names need a text tower"
            )
    templates = model.head.templates
    if not templates or any(template.count("{}") != 1 for template in templates):
        yield f"`model.head.templates` is {templates}: each should have one {{}} for the class name"


def _compression(model: config.Model, frames: int) -> Iterator[str]:
    compression = model.compression
    after = compression.after
    if compression.kind == "none" and after:
        yield f'`model.compression.after` is {after} but `kind` is "none": set one of the two'
    if compression.kind not in ("none", "tome") and not after:
        yield f"`model.compression.after` is empty but `kind` is {compression.kind!r}: name the blocks"
    if list(after) != sorted(set(after)):
        yield f"`model.compression.after` is {after}: it should list increasing block numbers"
    if compression.kind == "tome":
        yield from _merging(model)
    ratio = compression.group ** len(compression.compresses_after)
    if frames % ratio:
        yield (
            f"`data.num_frames` is {frames}: it should be divisible by {ratio}, since "
            f"`model.compression.group` = {compression.group} frames become one after each of the blocks "
            f"`model.compression.after` = {after}"
        )
    scales = compression.scales
    if not scales or len(set(scales)) != len(scales):
        yield f"`model.compression.scales` is {scales}: name one or more of {config.SCALES}, each once"


def _merging(model: config.Model) -> Iterator[str]:
    compression = model.compression
    if compression.group != config.Compression.group:
        yield (
            f'`model.compression.group` is {compression.group} and `kind` is "tome", which merges patches of '
            f"one frame: leave it at {config.Compression.group}"
        )
    temporal = model.temporal if model.temporal != "none" else config.TEMPORAL_OF.get(model.adaptation)
    if compression.matching == "frame" and temporal:
        yield (
            '`model.compression.matching` is "frame", which merges other patches in each frame, but temporal '
            f'{temporal} relates equal positions of frames: set it to "clip" or "auto"'
        )


def _adaptation(model: config.Model, frames: int) -> Iterator[str]:
    own = config.TEMPORAL_OF.get(model.adaptation)
    if model.temporal != "none" and frames == 1:
        yield (
            f'`model.temporal` is "{model.temporal}" and `data.num_frames` is 1: a temporal module needs '
            "several frames"
        )
    if model.temporal == own:
        yield (
            f'`model.temporal` is "{model.temporal}", which `model.adaptation` = "{model.adaptation}" has '
            "already: set one of the two"
        )
    shifts = model.zero_i2v.shifts
    if any(offset == 0 for offset, _ in shifts) or len({offset for offset, _ in shifts}) != len(shifts):
        yield f"`model.zero_i2v.shifts` is {shifts}: offsets should differ from each other and from 0"
    for key, chosen in (("lora.targets", model.lora.targets), ("st_adapter.before", model.st_adapter.before)):
        if not chosen or len(set(chosen)) != len(chosen):
            yield f"`model.{key}` is {chosen}: name one or more, each once"
    if model.drop_path and model.adaptation not in ("full", "aim"):
        yield (
            f'`model.drop_path` is {model.drop_path} and `model.adaptation` is "{model.adaptation}": '
            'it should be 0, since only "full" and "aim" train the branches that it drops'
        )


def _freezing(model: config.Model) -> Iterator[str]:
    if model.freeze_blocks and model.adaptation != "full":
        yield (
            f'`model.freeze_blocks` is {model.freeze_blocks} and `model.adaptation` is "{model.adaptation}", '
            'which trains no block: it needs "full". To train the last blocks, set `model.unfreeze_last`'
        )
    if model.pretrained == "random" and (model.freeze or model.freeze_blocks):
        key = "freeze" if model.freeze else "freeze_blocks"
        yield (
            f'`model.{key}` is {getattr(model, key)} and `model.pretrained` is "random": '
            "frozen parameters need converted weights"
        )


def _data(settings: config.Config) -> Iterator[str]:
    data = settings.data
    if settings.train.global_batch % data.repeats:
        yield (
            f"`data.repeats` is {data.repeats}: it should divide `train.global_batch`, which counts clips "
            f"and is {settings.train.global_batch}"
        )
    if data.balance and settings.train.class_weights == "inverse":
        yield (
            '`data.balance` is True and `train.class_weights` is "inverse": balanced classes need no '
            "weights, so set one of the two"
        )
    if not data.name:
        yield "`data.name` is empty: name a prepared dataset"
    if not data.data_dir:
        yield "`data.data_dir` is empty: set it to the directory where `prepare` wrote the dataset"
    ranges = {
        "crop_scale": data.crop_scale,
        "crop_ratio": data.crop_ratio,
        "erase.scale": data.erase.scale,
        "erase.ratio": data.erase.ratio,
    }
    for key, (low, high) in ranges.items():
        if not 0 < low <= high:
            yield f"`data.{key}` is {(low, high)}: it should be (low, high) with 0 < low <= high"


def _training(train: config.Train) -> Iterator[str]:
    if (train.steps > 0) == (train.epochs > 0):
        yield (
            f"`train.steps` is {train.steps} and `train.epochs` is {train.epochs}: set exactly one of the two"
        )
    if train.start_rate and not train.warmup_fraction:
        yield (
            f"`train.start_rate` is {train.start_rate} and `train.warmup_fraction` is 0: without a warmup "
            "nothing starts there, set one of the two"
        )
    if train.early_stop.patience and not train.eval_every_steps:
        yield (
            f"`train.early_stop.patience` is {train.early_stop.patience} and `train.eval_every_steps` is 0: "
            "set how often to evaluate, or set patience to 0"
        )
    if train.global_batch % train.accumulate:
        yield (
            f"`train.accumulate` is {train.accumulate}: it should divide `train.global_batch`, "
            f"which is {train.global_batch}"
        )
    for option in train.compiler_options:
        if not re.fullmatch(r"xla_\w+=.*", option):
            yield (
                f'`train.compiler_options` has "{option}": write each as NAME=VALUE, such as '
                "xla_cpu_enable_fast_math=true"
            )
    if (train.mix.mixup or train.mix.cutmix) and train.global_batch // train.accumulate % 2:
        yield (
            f"`train.global_batch` is {train.global_batch} in {train.accumulate} parts, and `train.mix` "
            "mixes pairs: each part should have an even number of videos"
        )


def _loss(settings: config.Config) -> Iterator[str]:
    train, model = settings.train, settings.model
    stop = train.early_stop
    if stop.patience and (stop.metric == "map") != train.multi_label:
        metrics = '"map"' if train.multi_label else '"top1", "top5" or "mean_class"'
        yield (
            f'`train.early_stop.metric` is "{stop.metric}" and `train.loss` is "{train.loss}": its '
            f"evaluations do not have this metric, set it to {metrics}"
        )
    if train.multi_label and settings.data.balance:
        yield (
            f'`data.balance` is True and `train.loss` is "{train.loss}": videos with several labels '
            'cannot be drawn by class, set it to False; `train.class_weights="inverse"` weighs rare classes'
        )
    if train.loss != "contrastive":
        return
    if model.head.init != "text":
        yield (
            f'`train.loss` is "contrastive" and `model.head.init` is "{model.head.init}": it compares videos '
            'with the texts of their classes, set `model.head.init` to "text"'
        )
    elif not any(
        fnmatch.fnmatchcase("head.classes.kernel", f"{glob}{end}")
        for glob in model.freeze
        for end in ("", ".*")
    ):
        yield (
            f'`train.loss` is "contrastive" and `model.freeze` is {model.freeze}: the texts of the classes '
            'should stay those of the text tower, add "head.classes" to it'
        )
    refused: dict[str, tuple[object, object]] = {
        "label_smoothing": (train.label_smoothing, 0.0),
        "class_weights": (train.class_weights, "none"),
        "mix.mixup": (train.mix.mixup, 0.0),
        "mix.cutmix": (train.mix.cutmix, 0.0),
        "accumulate": (train.accumulate, 1),
    }
    for key, (value, only) in refused.items():
        if value != only:
            yield (
                f'`train.loss` is "contrastive" and `train.{key}` is {value!r}: it should be {only!r}, since '
                "the loss relates all videos of a batch"
            )


def _mesh(settings: config.Config) -> Iterator[str]:
    axes = dataclasses.asdict(settings.mesh)
    if any(size < 1 and size != -1 for size in axes.values()) or list(axes.values()).count(-1) > 1:
        yield f"`mesh` is {axes}: sizes should be positive, and at most one may be -1 (all remaining devices)"
    # The number of devices that -1 stands for is known once the mesh is made; that checks the rest.
    data, fsdp = (max(axes[axis], 1) for axis in ("data", "fsdp"))
    part = settings.train.global_batch // settings.train.accumulate
    for count, keys in (
        (part, "`train.global_batch` over `train.accumulate`"),
        (settings.eval.batch, "`eval.batch`"),
    ):
        if count % (data * fsdp):
            yield (
                f"{keys} is {count}: it should be a multiple of {data * fsdp}, over which `mesh` = {axes} "
                "splits the videos"
            )
