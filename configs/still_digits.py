"""Train the image model that the ablation starts from: a tiny tower, by the same code, on single frames.

    python -m inti_jax.prepare still_digits --data_dir data
    python -m inti_jax.main --config configs/still_digits.py --workdir runs/stills
    python -m inti_jax.convert runs/stills --out stills.safetensors

Arguments: seed, steps. Default: 0, 1500.
"""

import ml_collections

from inti_jax import config


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Return the config for the arguments in `arg`, `key=value,key=value`."""
    args = config.parse_arg(arg, seed=0, steps=1500)
    result = config.defaults()

    result.model.backbone = "tiny"
    result.model.pretrained = "random"

    result.data.name = "still_digits"
    result.data.data_dir = "data"
    result.data.num_frames = 1
    result.data.resolution = 32
    result.data.crop_scale = (0.8, 1.0)
    result.data.crop_ratio = (0.9, 1.1)

    result.train.global_batch = 128
    result.train.steps = args["steps"]
    result.train.learning_rate = 1e-3
    result.train.seed = args["seed"]
    result.train.log_every_steps = 100

    result.eval.batch = 256
    return result
