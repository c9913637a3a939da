"""Train a tiny model from scratch on the embedded dataset, whose classes differ only in frame order.

    python -m inti_jax.prepare motion_digits --data_dir data
    python -m inti_jax.main --config configs/quickstart.py:compression=inti --workdir runs/inti

Arguments: compression (none, inti, mean, static, drop), group (2, 3, 4), frames, seed, steps. Default: inti,
2, 8, 0, 640. Frames have to be a multiple of the group.
"""

import ml_collections

from inti_jax import config


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Return the config for the arguments in `arg`, `key=value,key=value`."""
    args = config.parse_arg(arg, compression="inti", group=2, frames=8, seed=0, steps=640)
    result = config.defaults()

    result.model.backbone = "tiny"
    result.model.pretrained = "random"
    result.model.compression.kind = args["compression"]
    result.model.compression.after = () if args["compression"] == "none" else (1,)
    result.model.compression.group = args["group"]

    result.data.name = "motion_digits"
    result.data.data_dir = "data"
    result.data.num_frames = args["frames"]
    result.data.sampling = "dense"
    result.data.stride = 2
    result.data.resolution = 32
    result.data.crop_scale = (0.8, 1.0)
    result.data.crop_ratio = (0.9, 1.1)

    result.train.global_batch = 32
    result.train.steps = args["steps"]
    result.train.learning_rate = 2e-3
    result.train.seed = args["seed"]
    result.train.log_every_steps = 20
    # For the accuracy's curve: two batches of the validation videos, eight times before the last evaluation.
    result.train.eval_every_steps = 72
    result.train.eval_videos = 128

    result.eval.batch = 64

    result.checkpoint.every_steps = 320
    return result
