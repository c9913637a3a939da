"""Train on Kinetics-400 with CLIP's ViT-L/14.

    python -m inti_jax.convert ViT-L-14.pt --out clip_vit_l14.safetensors
    python -m inti_jax.main --config configs/k400_vit_l14.py:method=aim --workdir runs/k400

Cost with the defaults: 405.7 GMACs per view; 648.1 with compression=none.
Arguments (common.py explains them): method, compression, frames, temporal, group, halvings, seed.

Sources of the recipes (common.py names the repositories and says what differs here):
- full: X-CLIP, X-CLIP/configs/k400/14_8.yaml. (UniFormerV2's L/14 was first trained on other videos.)
- aim: configs/recognition/vit/vitclip_large_k400.py, without its ColorJitter. That is PCA noise of a few grey
  levels, for which there is no key here.
- zero_i2v: configs/recognition/vit_zero_clip/CLIP-L_k400_8x16x1.py. From 32 frames on, CLIP-L_k400_32x4x1.py,
  with half the batch, erasing, and heads that see two frames back.
- st_adapter: the recipe of B/16. That is our choice, since none is published for L/14.
- linear, lora: our choice.
"""

import ml_collections

import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Return the config for the arguments in `arg`, `key=value,key=value`."""
    args = common.arguments(arg)
    dense = common.dense(args["frames"]) | common.views(3, 1) | common.FLIP
    long = args["frames"] >= 32
    recipes = {
        "full": common.X_CLIP | common.views(4, 3) | common.schedule(30, warmup=5, batch=256),
        "linear": common.LINEAR | dense | common.CROP | common.schedule(30, warmup=2.5, batch=256),
        "aim": common.AIM | common.LARGE | dense | common.CROP | common.schedule(30, warmup=2.5, batch=64),
        "st_adapter": common.st_adapter(192)
        | dense
        | common.SHORT_SIDE_JITTER
        | common.schedule(12, warmup=2, batch=192),
        "zero_i2v": common.ZERO_I2V
        | common.LARGE
        | dense
        | common.CROP
        | common.RAND_AUGMENT
        | common.schedule(40, warmup=2.5, batch=32 if long else 64)
        | {"data.erase.probability": 0.25 if long else 0.0},
        "lora": common.LORA | common.LARGE | dense | common.CROP | common.schedule(30, warmup=2.5, batch=64),
    }
    shifts = ((-1, 2), (1, 2))
    adapters = {
        "model.zero_i2v.dropout": 0.1,
        "model.zero_i2v.shifts": (*shifts, (-2, 2)) if long else shifts,
    }
    return common.build(args, recipes, name="kinetics400", backbone="clip_vit_l14", adapters=adapters)
