"""The run's configuration: frozen dataclasses, checked once, before any device is touched.

`configs/*.py` start from `defaults()` and return a ConfigDict; `from_dict` turns its values into a `Config`.
All defaults live here. An unknown key, a wrong type or an impossible combination raises
`ConfigError`, whose message names the key, the value and what would be valid.
"""

import dataclasses
from typing import Annotated, Literal

import pydantic
from pydantic import Field

_STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0)]

Scale = Literal["point", "local", "region", "global"]
SCALES: tuple[Scale, ...] = ("point", "local", "region", "global")


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Compression:
    """Where and how tokens become fewer. `tome` merges patches of a frame, the others halve the frames."""

    kind: Literal["none", "inti", "mean", "static", "drop", "tome"] = "none"
    # Block numbers, from 1: after which frames are halved; or in which `tome` merges patches: all, if empty.
    after: tuple[Positive, ...] = ()
    # Read by `inti` only.
    scales: tuple[Scale, ...] = SCALES
    normalizer: Literal["softmax", "sigmoid"] = "softmax"
    width: Positive = 64
    # The class token's weights: its own, from the point and global scales; the mean of the two frames; or
    # the mean of the patches' weights.
    class_token: Literal["own", "mean", "patches"] = "own"
    # Read by `tome` only: the patches that vanish in each block that merges, one number or one for each; and
    # whether each frame merges its own, or all frames of a clip the same. Temporal modules need the latter,
    # since they relate equal positions: `auto` is `clip` where there are any, else `frame`.
    r: NonNegative | tuple[NonNegative, ...] = 8
    matching: Literal["auto", "frame", "clip"] = "auto"

    @property
    def halves_after(self) -> tuple[int, ...]:
        """The blocks, from 1, after which there are half as many frames."""
        return () if self.kind == "tome" else self.after


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Aim:
    """AIM (arXiv:2302.03024): the block's own attention over time as well, and adapters with GELU."""

    bottleneck: Share = 0.25  # the adapters' inner width, as a share of the backbone's
    scale: float = 0.5  # of the adapter beside the MLP
    temporal_adapters: Literal[1, 2] = 1  # with 2, one before the temporal attention too


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class StAdapter:
    """ST-Adapter (arXiv:2206.13559): a bottleneck with a depthwise convolution over time."""

    width: Positive = 384
    before: tuple[Literal["attn", "mlp"], ...] = ("mlp",)


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroI2V:
    """ZeroI2V (arXiv:2310.01324): heads that see other frames, and linear adapters that fold away."""

    bottleneck: Share = 0.25
    scale: float = 0.5
    dropout: Rate = 0.0  # inside the adapters, in training
    # (offset, heads): that many more heads take their keys and values from the frame so far away.
    shifts: tuple[tuple[int, Positive], ...] = ((-1, 1), (1, 1))


# The temporal module that an adaptation method has of its own; see `Model.temporal`.
TEMPORAL_OF = {"aim": "attention", "st_adapter": "conv", "zero_i2v": "shift"}

LoraTarget = Literal["query", "key", "value", "out", "fc", "proj"]


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """LoRA (arXiv:2106.09685): updates of low rank beside the block's matrices."""

    rank: Positive = 8
    alpha: PositiveFloat = 16.0  # the update's scale is alpha / rank
    targets: tuple[LoraTarget, ...] = ("query", "value")


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """The classifier. `text` starts from the class names, by the text tower of `model.pretrained`."""

    init: Literal["random", "text"] = "random"
    dropout: Rate = 0.0  # of the video's feature, in training
    # Prompts for `text`; `{}` is where the class name goes.
    templates: tuple[str, ...] = ("a photo of {}.", "a video of a person {}.", "an example of {}.")


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    backbone: Literal["clip_vit_b32", "clip_vit_b16", "clip_vit_l14", "clip_vit_l14_336", "tiny"] = "tiny"
    # A file that `convert` wrote. "random" starts from scratch, which has to be said explicitly.
    pretrained: str = ""
    # A file that `convert RUN --to trained` wrote, of this very model on these weights and labels: what
    # trains starts from there.
    start_from: str = ""
    # What trains (see freezing.py), and what it adds to the blocks (see models/adaptation.py).
    adaptation: Literal["full", "linear", "aim", "st_adapter", "zero_i2v", "lora"] = "full"
    # What does not train besides, by glob patterns of the paths of parameters or modules: `tower.blocks.0`,
    # `tower.blocks.[0-5]`, `tower.*.bias`. Each has to name some that would, and only what is pretrained.
    freeze: tuple[str, ...] = ()
    # With `full`: the first blocks that do not train, and the embeddings below them.
    freeze_blocks: NonNegative = 0
    # With the other methods: the last blocks of the tower that train as well, and the LayerNorm behind them.
    unfreeze_last: NonNegative = 0
    aim: Aim = Aim()
    st_adapter: StAdapter = StAdapter()
    zero_i2v: ZeroI2V = ZeroI2V()
    lora: Lora = Lora()
    # A temporal module on top of any of them, with the settings of the method it is from: AIM's attention
    # over time, ST-Adapter's convolution, or ZeroI2V's shifted heads.
    temporal: Literal["none", "attention", "conv", "shift"] = "none"
    drop_path: Rate = 0.0  # of the last block's trained branches in training, rising linearly from 0
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"  # of the parameters that do not train
    compression: Compression = Compression()
    head: Head = Head()
    remat: bool = False  # recompute each block in the backward pass: less memory, more time
    # Blocks that follow each other and are alike as one loop: a program that computes the same and compiles
    # sooner. `auto` does so in towers of 24 blocks and more.
    scan: Literal["auto", "on", "off"] = "auto"


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugment:
    """Operations by chance on whole frames, before the crop: `rand-m7-n4` is ops=4, magnitude=7."""

    ops: NonNegative = 0  # drawn for a clip; 0: off
    magnitude: Annotated[float, Field(ge=0, le=10)] = 7.0
    std: Annotated[float, Field(ge=0)] = 0.0  # of the magnitude, which is drawn for each operation
    probability: Fraction = 0.5  # with which an operation that was drawn is applied


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Jitter:
    """Colour jitter. A strength s is a factor in 1 - s to 1 + s; that of `hue` a turn of -s to s circles."""

    probability: Fraction = 1.0  # that a clip is jittered at all
    brightness: Annotated[float, Field(ge=0)] = 0.0
    contrast: Annotated[float, Field(ge=0)] = 0.0
    saturation: Annotated[float, Field(ge=0)] = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Erase:
    """Random erasing of one box, the same in all frames of a clip."""

    probability: Fraction = 0.0
    # The box: share of the area, and width / height.
    scale: tuple[Fraction, Fraction] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    fill: Literal["noise", "mean"] = "noise"  # `mean` is CLIP's mean colour


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    name: str = ""
    data_dir: str = ""
    num_frames: Positive = 8
    sampling: Literal["dense", "uniform"] = "dense"
    stride: Positive = 1  # source frames between two frames of a `dense` clip
    resolution: Positive = 224
    repeats: Positive = 1  # clips of each video in a training batch, cut and augmented differently
    # Every class equally often in an epoch, which has as many clips as without: a rare class's videos come
    # several times, cut and augmented differently, and not all of a frequent class's come.
    balance: bool = False
    # From here to `erase`: what is done to training clips, the same to all frames of one.
    crop: Literal["random_resized", "multi_scale"] = "random_resized"
    # Read by `random_resized` only: share of the area, and width / height.
    crop_scale: tuple[Fraction, Fraction] = (0.5, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: bool = False  # mirror half left to right; labels that name a side change with them
    rand_augment: RandAugment = RandAugment()
    jitter: Jitter = Jitter()
    grayscale: Fraction = 0.0  # probability
    erase: Erase = Erase()
    max_bad_share: Fraction = 0.01  # of the training clips so far, or of an epoch, that may fail to decode
    # Decoding processes; 0 decodes in threads. -1: the host's cores but one, and none where the CPU computes.
    workers: Annotated[int, Field(ge=-1)] = -1
    threads: Positive = 2  # decoding threads, in each process
    prefetch: Positive = 2  # batches kept ready in host memory, and again on the device


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix:
    """Mixup and CutMix of pairs of training clips. 0 turns either off."""

    mixup: Annotated[float, Field(ge=0)] = 0.0  # alpha of the Beta distribution of the shares
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    switch: Fraction = 0.5  # where both are on, the share of CutMix
    probability: Fraction = 1.0  # that a pair is mixed at all


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """The end of training when the validation figure rises no more, before `steps` are done.

    It counts the evaluations at multiples of `train.eval_every_steps` that have the run's views and dataset.
    A run that was stopped goes on when `patience` is raised, or 0. `checkpoint.keep_best` keeps the best by
    top1.
    """

    patience: NonNegative = 0  # evaluations in a row without a rise after which training ends; 0: off
    metric: Literal["top1", "top5", "mean_class"] = "top1"
    min_delta: Fraction = 0.0  # a rise over the best so far is more than this


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    global_batch: Positive = 32
    # One of the two: the other stays 0. A run that has ended goes on when it is given more: from there its
    # learning rate is that of a run of so many steps from the beginning.
    steps: NonNegative = 0
    epochs: Annotated[float, Field(ge=0)] = 0.0
    learning_rate: PositiveFloat = 1e-3
    warmup_fraction: Fraction = 0.05  # of all steps, linearly from zero; then a cosine to zero
    # Factors on the learning rate: of the pretrained tower, of what is added to it, and of the classifier.
    tower_rate: PositiveFloat = 1.0
    added_rate: PositiveFloat = 1.0
    head_rate: PositiveFloat = 1.0
    layer_decay: Share = 1.0  # a further factor on the tower's for each block above, as in BEiT
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    label_smoothing: Rate = 0.0
    # Factors on the loss by the video's class: `inverse` to how many training clips the class has, or one for
    # each class in the order of the dataset's labels. They are scaled so that their mean over clips is 1.
    class_weights: Literal["none", "inverse"] | tuple[Annotated[float, Field(ge=0)], ...] = "none"
    mix: Mix = Mix()
    clip_norm: PositiveFloat = 1.0
    # Micro-batches a step: less memory, the same update. A run may go on with another number, and draws the
    # same but for dropout and `model.drop_path`, which are drawn anew for each micro-batch.
    accumulate: Positive = 1
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters are float32
    seed: NonNegative = 0
    log_every_steps: Positive = 10
    eval_every_steps: NonNegative = 0  # 0: at the end only
    early_stop: EarlyStop = EarlyStop()


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
    clips: Positive = 1
    crops: Literal[1, 3] = 1
    batch: Positive = 32  # videos, over all devices


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """Devices along each axis; -1 takes what the other two leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    every_steps: Positive = 500  # and before every evaluation, at the end, and when the run is stopped
    keep: Positive = 2  # the newest
    keep_best: NonNegative = 1  # and those with the best `top1` of those that were evaluated


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Hosts:
    """When several processes end, saying which of them is lost or stands still, in seconds."""

    silent_seconds: Annotated[float, Field(ge=5, le=300)] = 30.0  # without a sign of life of one
    stall_seconds: PositiveFloat = 300.0  # at a training step or evaluation batch that others wait for
    slow_seconds: PositiveFloat = 3600.0  # at what takes long: compiling, weights, a checkpoint


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    model: Model = Model()
    data: Data = Data()
    train: Train = Train()
    eval: Eval = Eval()
    mesh: Mesh = Mesh()
    checkpoint: Checkpoint = Checkpoint()
    hosts: Hosts = Hosts()
