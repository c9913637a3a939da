"""Train one cell of the ablation: a method with a compressor, from a tiny image model, on motion_digits.

This runs a table of cells:

    python -m inti_jax.ablate --data_dir data --out runs/ablation

This runs one cell, from the image model that configs/still_digits.py trains:

    python -m inti_jax.main --config configs/ablation.py:method=st_adapter,compression=inti \\
      --workdir runs/cell --config.model.pretrained=stills.safetensors

Arguments: method (full, linear, aim, st_adapter, zero_i2v, lora), temporal (none, attention, conv, shift),
compression (none, drop, mean, static, inti, tome), group (2, 3, 4), scales (all, or one of inti's), frames,
seed, steps. Frames have to be a multiple of the group.
"""

import ml_collections

from inti_jax import config


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Return the config for the arguments in `arg`, `key=value,key=value`."""
    args = config.parse_arg(
        arg,
        method="full",
        temporal="none",
        compression="inti",
        group=2,
        scales="all",
        frames=8,
        seed=0,
        steps=400,
    )
    result = config.defaults()

    result.model.backbone = "tiny"
    result.model.pretrained = "stills.safetensors"
    result.model.adaptation = args["method"]
    result.model.temporal = args["temporal"]
    result.model.st_adapter.width = 48  # half the width of the tower, as 384 is for ViT-B
    compression = result.model.compression
    compression.kind = args["compression"]
    compression.after = () if args["compression"] in ("none", "tome") else (1,)
    compression.group = args["group"]
    compression.r = 3  # leaves about the cost that compressing pairs of frames after block 1 leaves
    if args["scales"] != "all":
        compression.scales = (args["scales"],)

    result.data.name = "motion_digits"
    result.data.data_dir = "data"
    result.data.num_frames = args["frames"]
    result.data.stride = 2
    result.data.resolution = 32
    result.data.crop_scale = (0.8, 1.0)
    result.data.crop_ratio = (0.9, 1.1)

    # The same for all cells, tuned to none.
    result.train.global_batch = 16
    result.train.steps = args["steps"]
    result.train.learning_rate = 2e-3
    result.train.seed = args["seed"]
    result.train.log_every_steps = 50

    result.eval.batch = 50
    result.checkpoint.every_steps = args["steps"]
    result.checkpoint.keep = 1
    return result
