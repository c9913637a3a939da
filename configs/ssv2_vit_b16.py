"""Train on Something-Something V2 with CLIP's ViT-B/16.

    python -m inti_jax.convert ViT-B-16.pt --out clip_vit_b16.safetensors
    python -m inti_jax.main --config configs/ssv2_vit_b16.py:method=aim,frames=16 --workdir runs/ssv2

Cost with the defaults: 88.3 GMACs per view; 140.5 with compression=none.
Arguments (common.py explains them): method, compression, frames, temporal, group, halvings, seed.

Sources of the recipes (common.py names the repositories and says what differs here):
- full: UniFormerV2 for 16 frames, exp/sthv2/ssv2_b16_f16x224/{run.sh,config.yaml}: 128 videos a batch, two
  clips of each.
- aim: configs/recognition/vit/vitclip_base_sthv2.py.
- st_adapter: scripts/train_ssv2_clip_vit_b16_adapter24x384.sh.
- zero_i2v: configs/recognition/vit_zero_clip/CLIP-B_sthv2_u16.py for 16 frames. With fewer, no heads see two
  frames away. It lists the labels that a flip exchanges; here they follow from the labels' texts.
- linear, lora: our choice, with AIM's input.
"""

import ml_collections

import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Return the config for the arguments in `arg`, `key=value,key=value`."""
    args = common.arguments(arg)
    recipes = {
        "full": common.uniformerv2(4e-5)
        | common.views(1, 3)
        | common.schedule(22, warmup=5, batch=256)
        | {"model.drop_path": 0.2, "data.repeats": 2},
        "linear": common.LINEAR | common.AIM_SSV2_INPUT | common.schedule(50, warmup=2.5, batch=256),
        "aim": common.AIM | common.AIM_SSV2_INPUT | common.schedule(50, warmup=2.5, batch=64),
        "st_adapter": common.st_adapter(256)
        | common.UNIFORM
        | common.CROP
        | common.RAND_AUGMENT
        | common.views(1, 3)
        | common.schedule(50, warmup=2, batch=256),
        "zero_i2v": common.ZERO_I2V | common.ZERO_I2V_SSV2_INPUT | common.schedule(50, warmup=2.5, batch=64),
        "lora": common.LORA | common.AIM_SSV2_INPUT | common.schedule(50, warmup=2.5, batch=64),
    }
    shifts = ((-1, 1), (1, 1))
    adapters = {
        "model.aim.scale": 1.0,
        "model.aim.temporal_adapters": 2,
        "model.st_adapter.before": ("attn", "mlp"),
        "model.zero_i2v.scale": 1.0,
        "model.zero_i2v.shifts": (*shifts, (-2, 1), (2, 1)) if args["frames"] >= 16 else shifts,
    }
    return common.build(args, recipes, name="ssv2", backbone="clip_vit_b16", adapters=adapters)
