"""The run's configuration: frozen dataclasses, checked once, before any device is touched.

`configs/*.py` start from `defaults()` and return a ConfigDict; `from_dict` turns its values into a `Config`.
All defaults live here. An unknown key, a wrong type or an impossible combination raises
`ConfigError`, whose message names the key, the value and what would be valid.
"""

import dataclasses
import difflib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import ml_collections
import pydantic
from pydantic import Field

from inti_jax.errors import UserError
from inti_jax.models.backbone import BACKBONES

_STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]

Scale = Literal["point", "local", "region", "global"]
SCALES: tuple[Scale, ...] = ("point", "local", "region", "global")


class ConfigError(UserError):
    """A configuration that cannot run: names the key, its value and what would be valid."""

    exit_code = 2


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Compression:
    """Where and how neighbouring frames are blended. All but `kind="none"` halve the frames."""

    kind: Literal["none", "inti", "mean", "static", "drop"] = "none"
    # Block numbers, from 1, after which the frames are halved.
    after: tuple[Positive, ...] = ()
    # The rest is read by `inti` only.
    scales: tuple[Scale, ...] = SCALES
    normalizer: Literal["softmax", "sigmoid"] = "softmax"
    width: Positive = 64


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """The classifier. `text` starts from the class names, by the text tower of `model.pretrained`."""

    init: Literal["random", "text"] = "random"
    # Prompts for `text`; `{}` is where the class name goes.
    templates: tuple[str, ...] = ("a photo of {}.", "a video of a person {}.", "an example of {}.")


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    backbone: Literal["clip_vit_b32", "clip_vit_b16", "clip_vit_l14", "clip_vit_l14_336", "tiny"] = "tiny"
    # A file that `convert` wrote. "random" starts from scratch, which has to be said explicitly.
    pretrained: str = ""
    adaptation: Literal["full", "linear"] = "full"  # which parameters train: see state.py
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"  # of the parameters that do not train
    compression: Compression = Compression()
    head: Head = Head()
    remat: bool = False  # recompute each block in the backward pass: less memory, more time


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
    workers: NonNegative = 0  # decoding processes; 0 decodes in threads
    threads: Positive = 2  # decoding threads, in each process
    prefetch: Positive = 2  # batches kept ready in host memory, and again on the device


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    global_batch: Positive = 32
    # One of the two: the other stays 0.
    steps: NonNegative = 0
    epochs: Annotated[float, Field(ge=0)] = 0.0
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup_fraction: Fraction = 0.05  # of all steps, linearly from zero; then a cosine to zero
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    accumulate: Positive = 1  # micro-batches a step
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters are float32
    seed: NonNegative = 0
    log_every_steps: Positive = 10
    eval_every_steps: NonNegative = 0  # 0: at the end only


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
    every_steps: Positive = 500
    keep: Positive = 2


@pydantic.with_config(_STRICT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    model: Model = Model()
    data: Data = Data()
    train: Train = Train()
    eval: Eval = Eval()
    mesh: Mesh = Mesh()
    checkpoint: Checkpoint = Checkpoint()


def defaults() -> ml_collections.ConfigDict:
    """Every key with its default. A key that does not exist is found when the config is parsed."""
    return ml_collections.ConfigDict(dataclasses.asdict(Config()))


def parse_arg(arg: str, **defaults: Any) -> dict[str, Any]:
    """The arguments of a config file, `FILE:key=value,key=value`: `defaults`, with what `arg` gives.

    A value has the type of its default. Raises ConfigError for a key that `defaults` does not name, or a
    value of another type.
    """
    values = dict(defaults)
    for item in filter(None, arg.split(",")):
        key, equals, text = item.partition("=")
        if key not in defaults or not equals:
            near = difflib.get_close_matches(key, defaults, n=1)
            hint = (
                f"did you mean `{near[0]}`?"
                if near
                else f"write key=value, with key one of {', '.join(defaults)}"
            )
            raise ConfigError(f"config argument `{item}`: {hint}")
        kind = type(defaults[key])
        try:
            values[key] = kind(text)
        except ValueError:
            raise ConfigError(f"config argument `{item}`: {text!r} is not of type {kind.__name__}") from None
    return values


def check_key(key: str) -> None:
    """Raises ConfigError where the dotted `key` names no single value of the configuration."""
    section: Any = Config
    parts = key.split(".")
    for depth, part in enumerate(parts):
        fields = {field.name: field.type for field in dataclasses.fields(section)}
        if part not in fields:
            raise ConfigError(_unknown_key(".".join(parts[: depth + 1]), list(fields)))
        section = fields[part]
        if dataclasses.is_dataclass(section) != (depth < len(parts) - 1):
            raise ConfigError(
                f"config: `{key}` is not a single value; give a whole key, such as `train.steps`"
            )


def read_json(path: Path) -> dict[str, Any]:
    """The contents of a config.json. Raises ConfigError where it is absent or not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: is {path.parent} the directory of a run?") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None


def from_dict(values: dict[str, Any]) -> Config:
    """Checks `values`, nested as the dataclasses are, and freezes them. Raises ConfigError."""
    try:
        # By way of JSON, where strict types still let a list be a tuple and a dict a dataclass.
        config = pydantic.TypeAdapter(Config).validate_json(json.dumps(values, default=repr))
    except pydantic.ValidationError as error:
        raise ConfigError(_first_problem(error)) from None
    _check_combinations(config)
    return config


def _first_problem(error: pydantic.ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return _unknown_key(key, _keys_beside(key))
    reason = re.sub(r"^Input should be", "it should be", problem["msg"])
    return f"config: `{key}` is {problem['input']!r}: {reason}"


def _unknown_key(key: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(key.rpartition(".")[2], valid, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"valid keys: {', '.join(valid)}"
    return f"config: unknown key `{key}`; {hint}"


def _keys_beside(key: str) -> list[str]:
    section: Any = Config
    for part in key.split(".")[:-1]:
        section = {field.name: field.type for field in dataclasses.fields(section)}[part]
    return [field.name for field in dataclasses.fields(section)]


def _check_combinations(config: Config) -> None:
    def require(condition: bool, message: str) -> None:
        if not condition:
            raise ConfigError(f"config: {message}")

    model, data, train = config.model, config.data, config.train
    compression, backbone = model.compression, BACKBONES[model.backbone]
    require(
        bool(model.pretrained),
        '`model.pretrained` is empty: name a file that `convert` wrote, or say "random"',
    )
    random = model.pretrained == "random"
    require(
        not (random and model.adaptation != "full"),
        f'`model.adaptation` is "{model.adaptation}" and `model.pretrained` is "random": '
        "a backbone that does not train needs converted weights",
    )
    require(
        not (random and model.head.init == "text"),
        '`model.head.init` is "text" and `model.pretrained` is "random": class names need a text tower',
    )
    require(
        bool(model.head.templates) and all(template.count("{}") == 1 for template in model.head.templates),
        f"`model.head.templates` is {model.head.templates}: each should have one {{}} for the class name",
    )
    after = compression.after
    if compression.kind == "none":
        require(not after, f'`model.compression.after` is {after} but `kind` is "none": set one of the two')
    else:
        require(
            bool(after),
            f"`model.compression.after` is empty but `kind` is {compression.kind!r}: name the blocks",
        )
    require(
        list(after) == sorted(set(after)) and all(block <= backbone.layers for block in after),
        f"`model.compression.after` is {after}: it should be increasing block numbers "
        f"from 1 to {backbone.layers}, the depth of {model.backbone}",
    )
    halvings = 2 ** len(after)
    require(
        data.num_frames % halvings == 0,
        f"`data.num_frames` is {data.num_frames}: it should be divisible by {halvings}, "
        f"since `model.compression.after` = {after} halves the frames {len(after)} times",
    )
    require(
        bool(compression.scales) and len(set(compression.scales)) == len(compression.scales),
        f"`model.compression.scales` is {compression.scales}: name one or more of {SCALES}, each once",
    )
    require(bool(data.name), "`data.name` is empty: name a prepared dataset")
    require(bool(data.data_dir), "`data.data_dir` is empty: it is where `prepare` wrote the dataset")
    require(
        data.resolution % backbone.patch == 0,
        f"`data.resolution` is {data.resolution}: it should be a multiple of {backbone.patch}, the patch of "
        f"{model.backbone}",
    )
    ranges = {
        "crop_scale": data.crop_scale,
        "crop_ratio": data.crop_ratio,
        "erase.scale": data.erase.scale,
        "erase.ratio": data.erase.ratio,
    }
    for key, (low, high) in ranges.items():
        require(
            0 < low <= high, f"`data.{key}` is {(low, high)}: it should be (low, high) with 0 < low <= high"
        )
    require(
        (train.steps > 0) != (train.epochs > 0),
        f"`train.steps` is {train.steps} and `train.epochs` is {train.epochs}: set exactly one of the two",
    )
    require(
        train.global_batch % train.accumulate == 0,
        f"`train.accumulate` is {train.accumulate}: it should divide `train.global_batch`, "
        f"which is {train.global_batch}",
    )
    axes = dataclasses.asdict(config.mesh)
    require(
        all(size > 0 or size == -1 for size in axes.values()) and list(axes.values()).count(-1) <= 1,
        f"`mesh` is {axes}: sizes are positive, and at most one is -1 (what the others leave)",
    )
    require(
        backbone.heads % max(axes["tensor"], 1) == 0,
        f"`mesh.tensor` is {axes['tensor']}: it should divide the {backbone.heads} heads of {model.backbone}",
    )
