"""Train on UCF101 with CLIP's ViT-B/16, on the split that was prepared as `ucf101`.

    python -m inti_jax.convert ViT-B-16.pt --out clip_vit_b16.safetensors
    python -m inti_jax.main --config configs/ucf101_vit_b16.py:method=zero_i2v --workdir runs/ucf101

Cost with the defaults: 88.3 GMACs per view; 140.5 with compression=none.
Arguments (common.py explains them): method, compression, frames, temporal, group, halvings, seed.

Sources of the recipes (common.py names the repositories and says what differs here):
- zero_i2v: configs/recognition/vit_zero_clip/vit_zero_base_clip_ucf101_u8_split1.py. From 32 frames on,
  ucf101_u32, with heads that see two frames away.
- full: X-CLIP for few examples a class, X-CLIP/configs/ucf101/16_32.yaml. To use it with all training videos
  is our choice.
- aim, st_adapter, linear, lora: our choice, with ZeroI2V's input and schedule.
"""

import ml_collections

import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Return the config for the arguments in `arg`, `key=value,key=value`."""
    args = common.arguments(arg)
    shifts = ((-1, 1), (1, 1))
    adapters = {
        "model.zero_i2v.dropout": 0.1,
        "model.zero_i2v.shifts": (*shifts, (-2, 1), (2, 1)) if args["frames"] >= 32 else shifts,
    }
    recipes = common.small_datasets(batch=128)
    return common.build(args, recipes, name="ucf101", backbone="clip_vit_b16", adapters=adapters)
