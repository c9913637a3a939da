"""Train on Kinetics-400 with CLIP's ViT-B/16.

    python -m inti_jax.convert ViT-B-16.pt --out clip_vit_b16.safetensors
    python -m inti_jax.main --config configs/k400_vit_b16.py:method=st_adapter --workdir runs/k400

Cost with the defaults: 88.3 GMACs per view; 140.5 with compression=none.
Arguments (common.py explains them): method, compression, frames, temporal, group, halvings, seed.

Sources of the recipes (common.py names the repositories and says what differs here):
- full: UniFormerV2, exp/k400/k400_b16_f8x224/{run.sh,config.yaml}.
- aim: configs/recognition/vit/vitclip_base_k400.py.
- st_adapter: scripts/train_k400_clip_vit_b16_adapter12x384.sh.
- zero_i2v: configs/recognition/vit_zero_clip/CLIP-B_k400_8x16x1.py.
- linear, lora: our choice.
"""

import ml_collections

import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Return the config for the arguments in `arg`, `key=value,key=value`."""
    args = common.arguments(arg)
    dense = common.dense(args["frames"]) | common.views(3, 1) | common.FLIP
    recipes = {
        "full": common.uniformerv2(1e-5)
        | common.FLIP
        | common.views(4, 3)
        | common.schedule(55, warmup=5, batch=256),
        "linear": common.LINEAR | dense | common.CROP | common.schedule(30, warmup=2.5, batch=256),
        "aim": common.AIM | dense | common.CROP | common.schedule(30, warmup=2.5, batch=64),
        "st_adapter": common.st_adapter(192)
        | dense
        | common.SHORT_SIDE_JITTER
        | common.schedule(12, warmup=2, batch=192),
        "zero_i2v": common.ZERO_I2V
        | dense
        | common.CROP
        | common.RAND_AUGMENT
        | common.schedule(40, warmup=2.5, batch=64),
        "lora": common.LORA | dense | common.CROP | common.schedule(30, warmup=2.5, batch=64),
    }
    adapters = {"model.zero_i2v.dropout": 0.1, "model.zero_i2v.shifts": ((-1, 1), (1, 1))}
    return common.build(args, recipes, name="kinetics400", backbone="clip_vit_b16", adapters=adapters)
