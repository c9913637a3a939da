"""Train on EgoGestAR with DINOv2's ViT-S/14: gestures in real videos, some of which only order tells apart.

For comparing methods and compressors with a real backbone on real videos, at a cost that a CPU can bear.
docs/data.md says how to get the videos and prepare the five folds; `dinov2-small` is a download of
facebook/dinov2-small.

    python -m inti_jax.convert dinov2-small --out dinov2_vit_s14.safetensors
    python -m inti_jax.prepare egogestar --source EgoGestAR/testvideo --fold 1 --data_dir data \\
      --name egogestar_fold1
    python -m inti_jax.main --config configs/egogestar.py:method=st_adapter,compression=inti \\
      --workdir runs/egogestar

Cost with the defaults: 5.6 GMACs per view; 8.9 with compression=none.
Arguments: method (st_adapter, linear, aim, zero_i2v, lora, full), compression (inti, none, drop, mean,
static, tome), scales (all, or one of inti's), start (mean, first: see model.compression.start), first_weight
(at the start `first`), group (2, 3, 4), after (the blocks after which frames become fewer, as 3 or 5,8),
frames, fold (1 to 5), seed, steps.
Default: st_adapter, inti, all, mean, 0.88, 2, 3, 8, 1, 0, 400.
Frames have to be a multiple of the group, for two blocks of its square.
"""

import ml_collections

from inti_jax import config

# The labels whose clips stay gestures of the dataset when mirrored, and when played backwards. The others are
# drawn in one direction only.
_REVERSIBLE = ("left", "right", "up", "down")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Return the config for the arguments in `arg`, `key=value,key=value`."""
    args = config.parse_arg(
        arg,
        method="st_adapter",
        compression="inti",
        scales="all",
        start="mean",
        first_weight=0.88,
        group=2,
        after=(3,),
        frames=8,
        fold=1,
        seed=0,
        steps=400,
    )
    if args["fold"] not in range(1, 6):
        raise config.ConfigError(f"config argument `fold={args['fold']}`: it should be 1 to 5")
    result = config.defaults()

    result.model.backbone = "dinov2_vit_s14"
    result.model.pretrained = "dinov2_vit_s14.safetensors"
    result.model.adaptation = args["method"]
    result.model.st_adapter.width = 96  # a quarter of the tower's width
    compression = result.model.compression
    compression.kind = args["compression"]
    compression.after = () if args["compression"] in ("none", "tome") else args["after"]
    compression.start = args["start"]
    compression.first_weight = args["first_weight"]
    compression.group = args["group"]
    compression.r = 3  # leaves about the cost that compressing pairs of frames after block 3 leaves
    if args["scales"] != "all":
        compression.scales = (args["scales"],)

    result.data.name = f"egogestar_fold{args['fold']}"
    result.data.data_dir = "data"
    result.data.num_frames = args["frames"]
    result.data.sampling = "uniform"
    result.data.resolution = (84, 112)
    result.data.crop_scale = (0.8, 1.0)
    result.data.crop_ratio = (0.9, 1.1)
    result.data.flip = True
    result.data.flip_labels = _REVERSIBLE
    result.data.reverse = True
    result.data.reverse_labels = _REVERSIBLE

    # The same for all methods and compressors, tuned to none.
    result.train.global_batch = 16
    result.train.steps = args["steps"]
    result.train.learning_rate = 1e-3
    result.train.tower_rate = 0.01  # pretrained weights, where they train
    result.train.seed = args["seed"]
    result.train.log_every_steps = 20
    # On a CPU, oneDNN computes the products in place of YNNPACK, each by itself: together with what surrounds
    # them (LIBRARY_FUSION_TYPE_DOT) some gradients were wrong. An Intel CPU with AMX takes bfloat16 for them
    # with ONEDNN_DEFAULT_FPMATH_MODE=BF16 in the environment: see docs/evidence.md.
    result.train.compiler_options = (
        "xla_cpu_experimental_ynn_fusion_type=",
        "xla_cpu_use_onednn=true",
        "xla_cpu_experimental_onednn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
    )

    result.eval.batch = 16
    result.checkpoint.every_steps = args["steps"]
    result.checkpoint.keep = 1
    return result
