"""Build the recipes' configs from published settings, schedules of compression and arguments.

A recipe is a dict from config keys to values. `|` adds settings to it, and the added ones win.

Arguments, each with its default first:
- method (full, linear, aim, st_adapter, zero_i2v, lora): the adaptation method; each config file has a recipe
  for each of them
- compression (inti, none, mean, static, drop, tome): `model.compression.kind`
- frames (8): frames of a clip
- temporal (none, attention, conv, shift): a temporal module on top of the method. With `full`, `linear` and
  `lora` and without such a module, only `inti` and `static` see the order of frames
- group (2, 3, 4): neighbouring frames that become one, of which `frames` has to be a multiple; all cost about
  the same, since larger groups come later
- halvings (1, 2): how often the frames are halved, with groups of 2; both cost the same, and 2 needs a
  multiple of 4 frames
- seed (0): `train.seed`

The recipes follow the systems named below as far as there are keys for their settings. These differences hold
for all of them:
- Mixup mixes pairs of clips; X-CLIP's mixes whole batches.
- Gradients are clipped at norm 1.
- Weight decay never applies to biases, LayerNorm and embeddings; in ST-Adapter and AIM it applies to a few of
  them.
- Pixels are normalised with CLIP's statistics; UniFormerV2 and X-CLIP use others.
- Stochastic depth drops a branch by video; AIM's drops it by token position.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from inti_jax import config

Settings = dict[str, Any]

# By `group` and `halvings`, the blocks after which groups of frames become one: 61.2 to 62.8 % of the cost is
# left.
AFTER = {
    "clip_vit_b16": {(2, 1): (3,), (2, 2): (5, 8), (3, 1): (5,), (4, 1): (6,)},
    "clip_vit_l14": {(2, 1): (6,), (2, 2): (10, 16), (3, 1): (10,), (4, 1): (12,)},
}
# Patches that `tome` merges away in every block, for about the same cost: 62.1 % on B/16, 61.6 % on L/14.
MERGED = {"clip_vit_b16": 12, "clip_vit_l14": 8}

# The arguments and their defaults.
ARGUMENTS: Settings = {
    "method": "full",
    "compression": "inti",
    "frames": 8,
    "temporal": "none",
    "group": 2,
    "halvings": 1,
    "seed": 0,
}


def schedule(epochs: float, *, warmup: float, batch: int) -> Settings:
    """Set the length of training: `epochs`, of which `warmup`, with `batch` clips a step over all devices."""
    return {"train.epochs": epochs, "train.warmup_fraction": warmup / epochs, "train.global_batch": batch}


def dense(frames: int) -> Settings:
    """Set dense sampling of 128 source frames, four to five seconds.

    That is 8x16, 16x8 or 32x4 (frames x stride).
    """
    return {"data.sampling": "dense", "data.stride": max(128 // max(frames, 1), 1)}


def views(clips: int, crops: int) -> Settings:
    """Set the views of a video in evaluation: `clips` times `crops`."""
    return {"eval.clips": clips, "eval.crops": crops}


UNIFORM: Settings = {"data.sampling": "uniform"}
CROP: Settings = {"data.crop_scale": (0.08, 1.0)}
FLIP: Settings = {"data.flip": True}
# timm's `rand-m7-n4-mstd0.5-inc1`.
RAND_AUGMENT: Settings = {
    "data.rand_augment.ops": 4,
    "data.rand_augment.magnitude": 7.0,
    "data.rand_augment.std": 0.5,
}
SMOOTHING: Settings = {"train.label_smoothing": 0.1}

# AIM (github.com/taoyang1122/adapt-image-models, configs/recognition/vit/vitclip_{base,large}_*.py). Its
# warmup starts at a tenth, the default of mmcv's `lr_config`.
AIM: Settings = {
    "train.learning_rate": 3e-4,
    "train.start_rate": 0.1,
    "train.weight_decay": 0.05,
    "model.drop_path": 0.2,
    "model.head.dropout": 0.5,
}
# AIM and ZeroI2V on L/14 have `backbone=dict(lr_mult=0.1)`; their adapters are part of the backbone.
LARGE: Settings = {"train.tower_rate": 0.1, "train.added_rate": 0.1}
# AIM on SSv2. Its RandAugment is imgaug's: magnitude 7 is of 30, and all operations drawn are applied. It
# erases after normalisation, with zeros.
AIM_SSV2_INPUT: Settings = (
    UNIFORM
    | CROP
    | SMOOTHING
    | views(1, 3)
    | {
        "data.rand_augment.ops": 4,
        "data.rand_augment.magnitude": 7 / 3,
        "data.rand_augment.probability": 1.0,
        "data.erase.probability": 0.25,
        "data.erase.fill": "mean",
    }
)

# ZeroI2V (github.com/MCG-NJU/ZeroI2V, configs/recognition/vit_zero_clip/CLIP-{B,L}_*.py).
ZERO_I2V: Settings = {
    "train.learning_rate": 3e-4,
    "train.start_rate": 0.1,
    "train.weight_decay": 0.05,
    "model.head.dropout": 0.5,
}
# ZeroI2V on SSv2. Its RandAugment comes after crop and flip, ours before. It erases with grey.
ZERO_I2V_SSV2_INPUT: Settings = (
    UNIFORM
    | CROP
    | FLIP
    | RAND_AUGMENT
    | SMOOTHING
    | views(1, 3)
    | {"data.erase.probability": 0.25, "data.erase.fill": "mean"}
)


# ST-Adapter (github.com/linziyi96/st-adapter, main.py and scripts/train_*.sh). It is published for B/16 only.
def st_adapter(batch: int) -> Settings:
    """Set ST-Adapter's optimizer and head, with the learning rate for `batch` clips a step."""
    return {
        "train.learning_rate": 1e-3 * batch / 256,
        "train.weight_decay": 0.01,
        "model.head.dropout": 0.5,
    }


# ST-Adapter on Kinetics scales the short side to between 1 and 1.15 times 224, and cuts out a square of 224.
# For a video of 16:9, these settings do exactly that: a square with 1 / 1.15 to 1 of the short side. For one
# of 4:3, the share of the area is the same, so the square has 0.75 to 0.87 of the short side.
SHORT_SIDE_JITTER: Settings = {"data.crop_scale": (0.5625 / 1.15**2, 0.5625), "data.crop_ratio": (1.0, 1.0)}


# The schedule and input of UniFormerV2 (github.com/OpenGVLab/UniFormerV2, exp/*/{run.sh,config.yaml}),
# without the modules that it adds. Its video pipeline does not read the colour jitter in its config.yaml.
def uniformerv2(rate: float) -> Settings:
    """Set UniFormerV2's recipe with the learning rate `rate`, which starts and ends at 1e-6."""
    return (
        {
            "train.learning_rate": rate,
            "train.start_rate": 1e-6 / rate,
            "train.end_rate": 1e-6 / rate,
            "train.weight_decay": 0.05,
            "model.head.dropout": 0.5,
        }
        | UNIFORM
        | CROP
        | RAND_AUGMENT
    )


# The schedule and input of X-CLIP (github.com/microsoft/VideoX, X-CLIP/utils/{config,optimizer}.py and
# X-CLIP/datasets/build.py), without the modules that it adds, whose learning rate is ten times the tower's.
# All of its rates end at a hundredth of the tower's; here each ends at a hundredth of its own. It classifies
# by texts; `model.head.init=text` is near to that.
X_CLIP: Settings = (
    {
        "train.learning_rate": 8e-6,
        "train.end_rate": 0.01,
        "train.adamw.betas": (0.9, 0.98),
        "train.weight_decay": 0.001,
        "train.added_rate": 10.0,
        "train.head_rate": 10.0,
        "data.crop": "multi_scale",
        "data.jitter.probability": 0.8,
        "data.jitter.brightness": 0.4,
        "data.jitter.contrast": 0.4,
        "data.jitter.saturation": 0.2,
        "data.jitter.hue": 0.1,
        "data.grayscale": 0.2,
        "train.mix.mixup": 0.8,
        "train.mix.cutmix": 1.0,
    }
    | UNIFORM
    | FLIP
    | SMOOTHING
)

# Our choice: the systems above publish no LoRA or linear recipe for CLIP on video. LoRA trains as AIM does,
# but without drop path.
LORA: Settings = AIM | {"model.drop_path": 0.0}
LINEAR: Settings = {"train.learning_rate": 1e-3, "train.weight_decay": 0.05}


# Where all parameters train, they and the optimizer's state are sharded over all devices. Where few train,
# each device has all parameters, and only gradients are exchanged.
SLICED: Settings = {"mesh.data": 1, "mesh.fsdp": -1}


def small_datasets(batch: int) -> dict[str, Settings]:
    """Make the recipes for UCF101 and HMDB51, by method.

    For these, only ZeroI2V has published a recipe with all of the training videos. The other methods have its
    input and schedule and their own rates, which is our choice. `full` is X-CLIP's recipe for few examples a
    class; its learning rate is that for Kinetics, at a quarter of the batch.
    """
    shared = UNIFORM | CROP | FLIP | RAND_AUGMENT | views(1, 3) | schedule(40, warmup=2.5, batch=batch)
    return {
        "full": X_CLIP | {"train.learning_rate": 2e-6} | views(1, 3) | schedule(50, warmup=5, batch=64),
        "linear": shared | LINEAR,
        "aim": shared | AIM,
        "st_adapter": shared | st_adapter(batch),
        "zero_i2v": shared | ZERO_I2V,
        "lora": shared | LORA,
    }


def arguments(arg: str) -> Settings:
    """Parse the arguments of a config file, on top of the defaults.

    Raises ConfigError for an unknown argument or a value of the wrong type.
    """
    return config.parse_arg(arg, **ARGUMENTS)


def build(
    args: Settings, recipes: Mapping[str, Settings], *, name: str, backbone: str, adapters: Settings
) -> ml_collections.ConfigDict:
    """Build the config for `args`: the recipe of the method in `recipes`, on the dataset `name`.

    `adapters` are settings of the methods' modules. They hold for all recipes, since `temporal` reads them
    too. Raises ConfigError for a method without a recipe, and for `group` or `halvings` that do not fit.
    """
    method, compression = args["method"], args["compression"]
    group, halvings = args["group"], args["halvings"]
    if method not in recipes:
        raise config.ConfigError(
            f"config argument `method={method}`: it should be one of {', '.join(recipes)}"
        )
    if group not in config.GROUPS:
        raise config.ConfigError(f"config argument `group={group}`: it should be 2, 3 or 4")
    if (group, halvings) not in AFTER[backbone]:
        valid = "1 or 2" if group == 2 else f"1 with `group={group}`"
        raise config.ConfigError(f"config argument `halvings={halvings}`: it should be {valid}")
    compresses = compression not in ("none", "tome")
    for key in ("group", "halvings"):
        if args[key] != ARGUMENTS[key] and not compresses:
            raise config.ConfigError(
                f"config argument `{key}={args[key]}`: `compression={compression}` makes no frames fewer"
            )
    result = config.defaults()
    result.update_from_flattened_dict(
        {
            "model.backbone": backbone,
            "model.pretrained": f"{backbone}.safetensors",
            "model.adaptation": method,
            "model.temporal": args["temporal"],
            "model.compression.kind": compression,
            "model.compression.after": AFTER[backbone][group, halvings] if compresses else (),
            "model.compression.group": group,
            "model.compression.r": MERGED[backbone],
            "data.name": name,
            "data.data_dir": "data",
            "data.num_frames": args["frames"],
            "data.resolution": 224,
            "train.dtype": "bfloat16",
            "train.seed": args["seed"],
            "train.log_every_steps": 50,
            "checkpoint.every_steps": 1000,
        }
        | (SLICED if method == "full" else {})
        | adapters
        | recipes[method]
    )
    return result
