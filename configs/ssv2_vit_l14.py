"""Train on Something-Something V2 with CLIP's ViT-L/14.

    python -m inti_jax.convert ViT-L-14.pt --out clip_vit_l14.safetensors
    python -m inti_jax.main --config configs/ssv2_vit_l14.py:method=zero_i2v,frames=32 --workdir runs/ssv2

Cost with the defaults: 405.7 GMACs per view; 648.1 with compression=none.
Arguments (common.py explains them): method, compression, frames, temporal, group, halvings, seed.

Sources of the recipes (common.py names the repositories and says what differs here):
- aim: configs/recognition/vit/vitclip_large_sthv2.py.
- zero_i2v: configs/recognition/vit_zero_clip/CLIP-L_sthv2_u32.py for 32 frames. With fewer, no heads see two
  or three frames away.
- full, st_adapter: the recipes of B/16 (UniFormerV2's and ST-Adapter's), our choice.
- linear, lora: our choice, with AIM's input.
"""

import ml_collections

import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Return the config for the arguments in `arg`, `key=value,key=value`."""
    args = common.arguments(arg)
    aim = common.LARGE | common.AIM_SSV2_INPUT | common.schedule(50, warmup=2.5, batch=64)
    recipes = {
        "full": common.uniformerv2(4e-5)
        | common.views(1, 3)
        | common.schedule(22, warmup=5, batch=256)
        | {"model.drop_path": 0.2, "data.repeats": 2},
        "linear": common.LINEAR | common.AIM_SSV2_INPUT | common.schedule(50, warmup=2.5, batch=256),
        "aim": common.AIM | aim,
        "st_adapter": common.st_adapter(256)
        | common.UNIFORM
        | common.CROP
        | common.RAND_AUGMENT
        | common.views(1, 3)
        | common.schedule(50, warmup=2, batch=256),
        "zero_i2v": common.ZERO_I2V
        | common.LARGE
        | common.ZERO_I2V_SSV2_INPUT
        | common.schedule(50, warmup=2.5, batch=32),
        "lora": common.LORA | aim,
    }
    shifts = ((-1, 2), (1, 2))
    adapters = {
        "model.aim.scale": 1.0,
        "model.st_adapter.before": ("attn", "mlp"),
        "model.zero_i2v.scale": 1.0,
        "model.zero_i2v.dropout": 0.1,
        "model.zero_i2v.shifts": (*shifts, (-2, 1), (2, 1), (-3, 1)) if args["frames"] >= 32 else shifts,
    }
    return common.build(args, recipes, name="ssv2", backbone="clip_vit_l14", adapters=adapters)
