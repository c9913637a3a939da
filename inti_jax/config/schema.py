"""Define every key of a run's configuration, with its type and default, as frozen dataclasses.

The files `configs/*.py` start from `parse.defaults()` and return a ConfigDict. `parse.from_dict` checks its
values once, before any device is touched, and turns them into a `Config`. All defaults are here. An unknown
key, a wrong type or an impossible combination raises `ConfigError`, whose message names the key, the value
and what would be valid.
"""

import dataclasses
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from inti_jax.config import resolution as resolutions

_STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0)]

# The way in which a block attends in training; see models/block.py.
AttentionKernel = Literal["auto", "xla"]

# A training loss; see training/losses.py.
LossName = Literal["cross_entropy", "binary_cross_entropy", "contrastive"]
# Those for datasets with one label a video, and those for datasets with one or more.
SINGLE_LABEL_LOSSES: tuple[LossName, ...] = ("cross_entropy", "contrastive")
MULTI_LABEL_LOSSES: tuple[LossName, ...] = ("binary_cross_entropy",)

# The number of neighbouring frames that a compressor makes one of.
Group = Literal[2, 3, 4]
GROUPS: tuple[Group, ...] = (2, 3, 4)

# A branch of the network that computes InTI's weights; see models/inti.py.
Scale = Literal["point", "local", "region", "global"]
SCALES: tuple[Scale, ...] = ("point", "local", "region", "global")


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Compression:
    """Compression of the tower's tokens: its kind, and the blocks at which they become fewer.

    Read by models/compressors.py, models/inti.py and models/tome.py.
    """

    # "none": no compression. "inti", "mean", "static" and "drop" make one frame of each group of neighbouring
    # frames: by InTI, by their mean, by one learned weight for each place in the group, or by dropping all
    # but the first. "tome" merges similar patches of a frame (arXiv:2210.09461).
    kind: Literal["none", "inti", "mean", "static", "drop", "tome"] = "none"
    # Numbers of blocks, from 1, in increasing order. The frames become fewer after each of them. "tome"
    # merges patches in each of them, or in all blocks if this is empty.
    after: tuple[Positive, ...] = ()
    # Frames of a group. T has to be a multiple of group ** len(after). "tome" has no groups.
    group: Group = 2
    # The blend with which "inti" and "static" start. "mean": all frames of a group have the same weight.
    # "first": the first frame has `first_weight`.
    start: Literal["mean", "first"] = "mean"
    # The weight of the first frame where `start` is "first"; the others share the rest.
    first_weight: Annotated[float, Field(gt=0, lt=1)] = 0.88
    # The next four are read by "inti" only.

    scales: tuple[Scale, ...] = SCALES  # one or more branches that compute the weights
    normalizer: Literal["softmax", "sigmoid"] = "softmax"  # makes the weights of a group sum to 1
    width: Positive = 64  # channels to which each frame's tokens are narrowed to compute the weights
    # The weights of the class token, or of all tokens before the patches. "own": from the point and global
    # scales; "mean": equal; "patches": the mean of the patches' weights.
    class_token: Literal["own", "mean", "patches"] = "own"
    # The next two are read by "tome" only.

    # Patches of a frame that each merging block merges away: one number for all, or one for each block.
    r: NonNegative | tuple[NonNegative, ...] = 8
    # "frame": each frame merges its own most similar patches. "clip": all frames of a clip merge the same
    # ones, which temporal modules need, since they relate equal positions. "auto": "clip" with a temporal
    # module, else "frame".
    matching: Literal["auto", "frame", "clip"] = "auto"

    @property
    def compresses_after(self) -> tuple[int, ...]:
        """The numbers of the blocks, from 1, after which the frames become fewer."""
        return () if self.kind == "tome" else self.after

    @property
    def name(self) -> str:
        """The kind, with the group where there is one, for tables and messages."""
        return f"{self.kind} (group {self.group})" if self.compresses_after else self.kind


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Aim:
    """AIM (arXiv:2302.03024): the block's own attention also over time, and adapters with GELU.

    Read with `model.adaptation` = "aim". `bottleneck` and `temporal_adapters` are also read with
    `model.temporal` = "attention".
    """

    bottleneck: Share = 0.25  # inner width of the adapters, as a share of the backbone's width
    scale: float = 0.5  # factor on the output of the adapter beside the MLP
    # 1: an adapter behind the attention over time. 2: another one before it.
    temporal_adapters: Literal[1, 2] = 1


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class StAdapter:
    """ST-Adapter (arXiv:2206.13559): a bottleneck with a depthwise convolution over time.

    Read with `model.adaptation` = "st_adapter" or `model.temporal` = "conv".
    """

    width: Positive = 384  # channels inside the bottleneck
    # The parts of a block, attention or MLP, that have a module before them.
    before: tuple[Literal["attn", "mlp"], ...] = ("mlp",)


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroI2V:
    """ZeroI2V (arXiv:2310.01324): heads that see other frames, and linear adapters that fold away.

    Read with `model.adaptation` = "zero_i2v". `shifts` are also read with `model.temporal` = "shift".
    """

    bottleneck: Share = 0.25  # inner width of the adapters, as a share of the backbone's width
    scale: float = 0.5  # factor on the adapters' outputs, before their inputs are added
    dropout: Rate = 0.0  # probability, inside the adapters, in training
    # Pairs of (offset, heads): the next `heads` heads take keys and values from the frame that is `offset`
    # away.
    shifts: tuple[tuple[int, Positive], ...] = ((-1, 1), (1, 1))


# The temporal module that an adaptation method has itself; see `Model.temporal`.
TEMPORAL_OF = {"aim": "attention", "st_adapter": "conv", "zero_i2v": "shift"}

# A matrix of a block: query, key, value and output of the attention, first and second layer of the MLP.
LoraTarget = Literal["query", "key", "value", "out", "fc", "proj"]


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """LoRA (arXiv:2106.09685): low-rank updates of the blocks' matrices.

    Read with `model.adaptation` = "lora".
    """

    rank: Positive = 8  # of each update
    alpha: PositiveFloat = 16.0  # the factor on each update is alpha / rank
    targets: tuple[LoraTarget, ...] = ("query", "value")  # the matrices of each block that have an update


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """The classifier on a video's feature.

    Read by models/video.py and, at the start of a run, by runs/initial.py.
    """

    # "random": a linear layer that starts at random. "text": CLIP's classifier, which starts from the class
    # names, encoded by the text tower of `model.pretrained`.
    init: Literal["random", "text"] = "random"
    dropout: Rate = 0.0  # probability, on the video's feature, in training
    # Prompts for "text". Each has one `{}`, where the class name goes; a class is the mean over them.
    templates: tuple[str, ...] = ("a photo of {}.", "a video of a person {}.", "an example of {}.")


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The model: its backbone, the modules added to it, and the parameters that train."""

    # The size of the image tower; see config/backbones.py. "auto": that of the weights in `pretrained`.
    backbone: Literal[
        "auto",
        "clip_vit_b32",
        "clip_vit_b16",
        "clip_vit_b16_plus_240",
        "clip_vit_l14",
        "clip_vit_l14_336",
        "clip_vit_h14",
        "clip_vit_g14",
        "clip_vit_bigg14",
        "dinov2_vit_s14",
        "dinov2_vit_b14",
        "dinov2_vit_l14",
        "dinov2_vit_g14",
        "dinov2_vit_s14_reg",
        "dinov2_vit_b14_reg",
        "dinov2_vit_l14_reg",
        "dinov2_vit_g14_reg",
        "siglip_vit_b32",
        "siglip_vit_b16",
        "siglip_vit_l16",
        "siglip_vit_g16",
        "siglip_so400m_14",
        "siglip_so400m_16",
        "tiny",
    ] = "tiny"
    # Path of the backbone's weights, a file that `convert` wrote, or their name on the Hugging Face Hub; or
    # "random" to start from scratch. It has to be given. Read by pretrained/loading.py.
    pretrained: str = ""
    # Path of a file that `convert RUN --to trained` wrote, or `convert` of a fine-tuned AIM, ST-Adapter or
    # ZeroI2V, or of a shared model, here or as hf://org/name; "" for none. The parameters that train start
    # from it. It has to be of the same model, on the same weights and labels; a file with its own backbone
    # is `pretrained` as well. Read by runs/initial.py.
    start_from: str = ""
    # The method. "full" trains all parameters. The others keep the tower frozen and train the classifier and
    # all that is added to the tower; "aim" and "zero_i2v" also its last LayerNorm. "linear" itself adds
    # nothing. Read by models/freezing.py and models/adaptation.py.
    adaptation: Literal["full", "linear", "aim", "st_adapter", "zero_i2v", "lora"] = "full"
    # Glob patterns of the paths of parameters or modules that do not train, against the method's choice:
    # `tower.blocks.0`, `tower.blocks.[0-5]`, `tower.*.bias`. Each has to name a parameter that would train.
    # Parameters that are new, hence not pretrained, cannot be frozen.
    freeze: tuple[str, ...] = ()
    # With "full" only: so many first blocks, and the embeddings below them, do not train.
    freeze_blocks: NonNegative = 0
    # With the other methods only: so many last blocks, and the LayerNorm and pooling behind them, train as
    # well.
    unfreeze_last: NonNegative = 0
    # Settings of the methods' modules.
    aim: Aim = Aim()
    st_adapter: StAdapter = StAdapter()
    zero_i2v: ZeroI2V = ZeroI2V()
    lora: Lora = Lora()
    # A temporal module on top of the method, with the settings of the method it comes from. "attention":
    # AIM's attention over time; "conv": ST-Adapter's convolution; "shift": ZeroI2V's shifted heads.
    temporal: Literal["none", "attention", "conv", "shift"] = "none"
    # Stochastic depth: the probability in training to drop a trained branch of the last block. It rises
    # linearly from 0 at the first block.
    drop_path: Rate = 0.0
    # Type in which the parameters that do not train are stored. Read by runs/state.py.
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    compression: Compression = Compression()
    head: Head = Head()
    # Compute each block again in the backward pass: less memory, more time. "auto": only where the step does
    # not fit into a device's memory otherwise. Training and `plan --topology` compile the step to find out;
    # everything else takes it for False. Read by training/memory.py.
    remat: bool | Literal["auto"] = False
    # Run consecutive blocks that are alike in one loop: the result is the same, and compiling takes less
    # time. "auto": in towers of 24 blocks or more.
    scan: Literal["auto", "on", "off"] = "auto"
    # How a block attends in training. "auto": on TPUs in one kernel, where a frame's tokens fit into a chip's
    # own memory; "xla": as XLA compiles it, everywhere. Read by models/block.py.
    attention: AttentionKernel = "auto"


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugment:
    """RandAugment (arXiv:1909.13719) of whole frames, before the crop, the same in all frames of a clip.

    timm's `rand-m7-n4` is ops=4, magnitude=7. Read by data/augmentation/rand_augment.py.
    """

    ops: NonNegative = 0  # number of operations drawn for a clip; 0 turns it off
    magnitude: Annotated[float, Field(ge=0, le=10)] = 7.0  # mean strength of an operation, 0 to 10
    std: Annotated[float, Field(ge=0)] = 0.0  # standard deviation of the strength between operations
    probability: Fraction = 0.5  # that an operation that was drawn is applied


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Jitter:
    """Colour jitter, the same in all frames of a clip; a strength of 0 turns its part off.

    A strength s of brightness, contrast or saturation draws a factor from 1 - s (at least 0) to 1 + s. That
    of `hue` turns hues by -s to s circles. Read by data/augmentation/colour.py.
    """

    probability: Fraction = 1.0  # that a clip is jittered at all
    brightness: Annotated[float, Field(ge=0)] = 0.0  # strength of the change of brightness
    contrast: Annotated[float, Field(ge=0)] = 0.0  # strength of the change of contrast
    saturation: Annotated[float, Field(ge=0)] = 0.0  # strength of the change of saturation
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # strength of the turn of hues


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Erase:
    """Random erasing (arXiv:1708.04896) of one box, the same in all frames of a clip.

    Read by data/augmentation/augment.py.
    """

    probability: Fraction = 0.0  # that a clip has a box erased
    scale: tuple[Fraction, Fraction] = (0.02, 1 / 3)  # lowest and highest area of the box, as a share
    ratio: tuple[float, float] = (0.3, 1 / 0.3)  # lowest and highest width / height of the box
    fill: Literal["noise", "mean"] = "noise"  # "noise": random pixels; "mean": CLIP's mean colour


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The dataset, the clips that are cut from its videos, and how they are loaded."""

    name: str = ""  # the name under which `prepare` wrote the dataset
    data_dir: str = ""  # path or gs:// URL of the directory where `prepare` wrote the dataset
    # With `data_dir` in a bucket: a directory on a disk of each host, to which the dataset's shards are
    # copied in the background. Once all are there, the bucket is not needed. Empty: `inti_jax/datasets` in
    # the user's cache, $XDG_CACHE_HOME or ~/.cache. Read by data/copies.py.
    cache_dir: str = ""
    # Most that all files in `cache_dir` take, in 10^9 bytes; 0: no copies. Datasets that no process uses give
    # way, those first that were used longest ago. Some of the disk stays free in any case.
    cache_gb: Annotated[float, Field(ge=0)] = 100.0
    num_frames: Positive = 8  # T, frames of a clip
    # "dense": frames that are `stride` apart. "uniform": one frame from each of `num_frames` equal
    # segments of the video. Read by data/sampling.py.
    sampling: Literal["dense", "uniform"] = "dense"
    stride: Positive = 1  # with "dense" only: distance of two frames of a clip, in source frames
    # Pixels of the frames that the model sees: the side of a square, or (height, width). Each is a multiple
    # of the backbone's patch size.
    resolution: Positive | tuple[Positive, Positive] = 224
    # Clips of each video in a training batch, each cut and augmented on its own. It divides
    # `train.global_batch`.
    repeats: Positive = 1
    # Draw every class equally often in an epoch, which keeps its number of clips. Videos of rare classes come
    # several times, each time cut and augmented anew; some videos of frequent classes do not come. Read by
    # data/balance.py.
    balance: bool = False
    # The keys from `crop` to `erase` change training clips, all frames of a clip alike. Read by
    # data/augmentation.

    # The box that is resized to `resolution`. "random_resized": a box of random area and shape.
    # "multi_scale": a box at a corner or the centre, each side 1, 0.875, 0.75 or 0.66 of that of the largest
    # box of the resolution's shape: for squares, of the short side (TSN, arXiv:1608.00859).
    crop: Literal["random_resized", "multi_scale"] = "random_resized"
    # With "random_resized" only: the lowest and the highest share of the frame's area.
    crop_scale: tuple[Fraction, Fraction] = (0.5, 1.0)
    # With "random_resized" only: the lowest and the highest width / height, relative to that of `resolution`.
    # A ratio of 1 keeps the shapes of things.
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: bool = False  # mirror half of the clips left to right; labels that name a side change with them
    # With `flip` only: the labels whose clips it may mirror. Clips of others stay as they are. Empty: all.
    flip_labels: tuple[str, ...] = ()
    # Play half of the clips backwards; labels that name a direction of movement change with them. The texts
    # of labels do not tell which others it leaves as they are, so list those that it may reverse.
    reverse: bool = False
    reverse_labels: tuple[str, ...] = ()  # with `reverse` only, as `flip_labels`
    rand_augment: RandAugment = RandAugment()
    jitter: Jitter = Jitter()
    grayscale: Fraction = 0.0  # probability that a clip becomes grey
    erase: Erase = Erase()
    # Share of training clips that may fail to decode, of those so far or, at the beginning, of an epoch.
    # Above it the run ends. Read by runs/monitor.py.
    max_bad_share: Fraction = 0.01
    # The keys from `workers` on are read by data/loading.

    # Worker processes that decode, on each host. 0: threads of the main process decode. -1: one less than the
    # host's cores, at most one for each clip loaded ahead; 0 where the model runs on the CPU.
    workers: Annotated[int, Field(ge=-1)] = -1
    threads: Positive = 2  # decoding threads of each worker process, or of the main process without workers
    prefetch: Positive = 2  # batches kept ready in host memory, and as many again on the device

    def __post_init__(self) -> None:
        """Write a square resolution by its side, so that equal settings are equal."""
        object.__setattr__(self, "resolution", resolutions.simplest(self.resolution))

    @property
    def height_width(self) -> tuple[int, int]:
        """The height and the width of the frames that the model sees, in pixels."""
        return resolutions.height_width(self.resolution)


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix:
    """Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899) of pairs of training clips.

    Read by training/mixing.py.
    """

    mixup: Annotated[float, Field(ge=0)] = 0.0  # alpha of the Beta distribution of the shares; 0: no mixup
    cutmix: Annotated[float, Field(ge=0)] = 0.0  # alpha of the Beta distribution of the areas; 0: no CutMix
    switch: Fraction = 0.5  # where both are on: probability of CutMix rather than mixup
    probability: Fraction = 1.0  # that a pair is mixed at all


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """Early stopping: training ends before all its steps once the validation metric rises no more.

    The evaluations at multiples of `train.eval_every_steps` count, with the views and the dataset of the run,
    and of the same videos (`train.eval_videos`). A run that was stopped goes on when `patience` is raised or
    set to 0. `checkpoint.keep_best` keeps the best by top1 (or map), whatever the metric. Read by
    training/early_stop.py.
    """

    patience: NonNegative = 0  # evaluations in a row without a rise that end training; 0: off
    # "top1" and "top5" are accuracies, and "mean_class" is the mean of the classes' top1. "map" is the mean
    # average precision, for datasets with several labels a video.
    metric: Literal["top1", "top5", "mean_class", "map"] = "top1"
    min_delta: Fraction = 0.0  # the metric has risen if it is above the best so far by more than this


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW (arXiv:1711.05101). Read by training/optim.py."""

    betas: tuple[Rate, Rate] = (0.9, 0.999)  # decay of the running means of the gradient and of its square
    epsilon: PositiveFloat = 1e-8  # added to the root of the mean square


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion:
    """Lion (arXiv:2302.06675). Its authors take a learning rate 3 to 10 times below AdamW's.

    `train.weight_decay` is multiplied by the rate, so they raise it by the same factor. Read by
    training/optim.py.
    """

    # The share of the running mean in the update, whose sign is taken, and the decay of the running mean.
    betas: tuple[Rate, Rate] = (0.9, 0.99)


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent with momentum. Read by training/optim.py."""

    momentum: Rate = 0.9  # decay of the running sum of gradients; 0: no momentum, and no memory for it


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Training: its length, the optimizer (training/optim.py), the loss and the numerics."""

    global_batch: Positive = 32  # clips of a step, over all devices and micro-batches
    # The length of training, unless `epochs` sets it. A run that has ended goes on when it is given more.
    # From there its learning rate is that of a run of the new length.
    steps: NonNegative = 0
    epochs: Annotated[float, Field(ge=0)] = 0.0  # the length in epochs; then `steps` has to be 0
    learning_rate: PositiveFloat = 1e-3  # the highest, at the end of the warmup
    # Share of all steps in which the learning rate rises linearly. Then it falls along a cosine.
    warmup_fraction: Fraction = 0.05
    start_rate: Fraction = 0.0  # the rate at which the warmup starts, as a share of `learning_rate`
    end_rate: Fraction = 0.0  # the rate at which the cosine ends, as a share of `learning_rate`
    optimizer: Literal["adamw", "lion", "sgd"] = "adamw"  # each has its own settings, in the next sections
    adamw: AdamW = AdamW()
    lion: Lion = Lion()
    sgd: SGD = SGD()
    tower_rate: PositiveFloat = 1.0  # factor on the learning rate of the pretrained tower
    added_rate: PositiveFloat = 1.0  # factor on that of adapters, temporal embedding and compressors
    head_rate: PositiveFloat = 1.0  # factor on that of the classifier
    # A further factor on the tower's learning rate, for each block (BEiT, arXiv:2106.08254): block i of L,
    # counted from 0, has `layer_decay ** (L - i)`, and the embeddings before it `layer_decay ** (L + 1)`.
    layer_decay: Share = 1.0
    # Not on biases, LayerNorm and embeddings. "adamw" and "lion" decay the weights beside the update
    # (decoupled); "sgd" adds the decay to the gradient (L2), which goes through the momentum.
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    # "cross_entropy": of the softmax over all classes. "binary_cross_entropy": of each class's sigmoid, for
    # datasets with several labels a video. "contrastive": between the videos of a batch and the texts of
    # their classes (ActionCLIP, arXiv:2109.08472). It needs a text head whose class embeddings are frozen.
    # Read by training/losses.py.
    loss: LossName = "cross_entropy"
    # Share of the target that is spread over all classes, or over both answers for each class with
    # "binary_cross_entropy".
    label_smoothing: Rate = 0.0
    # Factors on the loss of a clip, by its class. "inverse": inverse to the number of clips of the class in
    # an epoch. A tuple: one factor for each class, in the order of the dataset's labels. They are scaled so
    # that their mean over clips is 1. With "binary_cross_entropy" they are factors on the loss of a class's
    # positives, which are not scaled, and "inverse" is the ratio of its negatives to its positives. Read by
    # training/losses.py.
    class_weights: Literal["none", "inverse"] | tuple[Annotated[float, Field(ge=0)], ...] = "none"
    mix: Mix = Mix()
    # Decay of an exponential moving average of the weights that train; 0: no average. With one, a run is
    # judged by it, and other commands load it. In the first steps it decays faster: see training/optim.py. A
    # run may go on with another value.
    ema: Rate = 0.0
    clip_norm: PositiveFloat = 1.0  # gradients with a larger global norm are scaled down to it
    # Micro-batches of a step: more take less memory, and the update is the same. It divides `global_batch`. A
    # run may go on with another number. The random draws stay the same, but for dropout and
    # `model.drop_path`, which are drawn anew for each micro-batch.
    accumulate: Positive = 1
    # Type of the computation. Parameters that train are float32; for the others see `model.frozen_dtype`.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # XLA's options for compiling the step, each NAME=VALUE. They take precedence over those that are chosen
    # for the platform in distributed/sharding.py. A run may go on with others.
    compiler_options: tuple[str, ...] = ()
    seed: NonNegative = 0  # of new parameters, the order of videos, augmentation, mixing and dropout
    log_every_steps: Positive = 10  # steps between two logged steps, in metrics.jsonl and on the console
    eval_every_steps: NonNegative = 0  # steps between two evaluations; 0: one at the end only
    # Videos of each of these evaluations: the same ones every time, spread evenly over the classes; 0: all.
    # The one at the end is of all videos.
    eval_videos: NonNegative = 0
    # Where figures are reported besides metrics.jsonl. "wandb": Weights & Biases, which needs the extra of
    # that name. Read by runs/writers/metrics_writer.py.
    writers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    early_stop: EarlyStop = EarlyStop()

    @property
    def multi_label(self) -> bool:
        """True where the loss is for datasets with several labels a video."""
        return self.loss in MULTI_LABEL_LOSSES


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
    """The views of each video in evaluation, `clips` times `crops`; their probabilities are averaged.

    Read by data/pipeline.py and evaluation/evaluate.py.
    """

    clips: Positive = 1  # clips of a video, spread over its length
    # Crops of a clip, each the largest of the shape of `data.resolution`: the central one, or three along the
    # frames' longer side, relative to that shape.
    crops: Literal[1, 3] = 1
    batch: Positive = 32  # videos at a time, over all devices


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """The number of devices along each axis of the mesh; -1 takes what the other two leave.

    They multiply to the number of devices. A batch has to be a multiple of `data` times `fsdp`. Read by
    distributed/sharding.py.
    """

    data: int = -1  # splits the batch
    fsdp: int = 1  # splits the batch, and every large parameter with its optimizer state
    tensor: int = 1  # splits attention heads and MLP channels


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The times at which checkpoints are written, and the number of them that are kept.

    Read by runs/checkpoint.py and training/loop.py.
    """

    # Steps between two checkpoints. There is also one before every evaluation, at the end, and when the run
    # is stopped.
    every_steps: Positive = 500
    keep: Positive = 2  # number of newest checkpoints that are kept
    keep_best: NonNegative = 1  # number of checkpoints with the best `top1` (or `map`) that are kept as well


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Hosts:
    """Time limits, in seconds, after which all processes of a run end and name the one that is lost or stuck.

    A run of a single process does not read them. Read by distributed/liveness.py.
    """

    silent_seconds: Annotated[float, Field(ge=5, le=300)] = 30.0  # without a sign of life from a process
    stall_seconds: PositiveFloat = 300.0  # at a training step or an evaluation batch, while others wait
    slow_seconds: PositiveFloat = 3600.0  # at long operations: compiling, reading weights, a checkpoint


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The configuration of a run: all sections."""

    model: Model = Model()
    data: Data = Data()
    train: Train = Train()
    eval: Eval = Eval()
    mesh: Mesh = Mesh()
    checkpoint: Checkpoint = Checkpoint()
    hosts: Hosts = Hosts()
