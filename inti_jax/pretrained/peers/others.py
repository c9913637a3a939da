"""Recognise checkpoints that are no CLIP, so that an error can say what they are."""

import re
import shlex
from collections.abc import Iterable

from inti_jax.errors import UserError
from inti_jax.pretrained import unsupported
from inti_jax.pretrained.clip_rules import SUPPORTED
from inti_jax.pretrained.peers import methods
from inti_jax.pretrained.sources import ForeignCheckpoint

# Patterns of a part of a tensor's name, and what has such tensors; the first match counts. mmaction's modules
# are below `backbone.`.
_NAMES = (
    (r"(blocks|layers)\.\d+\.(.*\.)?[ST]_Adapter\.", "AIM on another image transformer than CLIP's"),
    (r"resblocks\.\d+\.[ST]_Adapter(_in)?\.", "AIM or ZeroI2V with other names than theirs"),
    (r"backbone\.slow_path\.", "SlowFast"),
    (r"backbone\.rgb_path\.", "RGBPoseConv3D"),
    (r"backbone\.layer\d\.\d+\.conv\d\.conv\.net\.", "TSM"),
    (r"backbone\.layer\d\.\d+\.(conv\d|block)\.", "a ResNet, such as TSN, I3D or SlowOnly"),
    (r"backbone\.conv1a\.", "C3D"),
    (r"backbone\.conv1_s\.", "X3D"),
    (r"backbone\.transformer_layers\.", "TimeSformer"),
    (r"backbone\.layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table", "Video Swin"),
    (r"backbone\.blocks\.\d+\.attn\.(pool_|norm_q|rel_pos_)", "MViT"),
    (r"backbone\.blocks\.\d+\.attn\.q_bias", "VideoMAE"),
    (r"backbone\.blocks\d\.\d+\.", "UniFormer"),
    (r"transformer\.(dec|dpe)\.\d+\.|transformer\.temporal_cls_token|\.lmhra\d\.", "UniFormerV2"),
    (r"backbone\.(gcn|st_gcn\w*)\.", "a graph network on skeletons"),
    (r"(^|\.)(mit\.resblocks|prompts_generator)\.", "X-CLIP"),
    (r"(^|\.)decoder\.decoder_layers\.", "EVL"),
    (r"(^|\.)roi_head\.", "a detector of actions"),
)
_FOLDED = "ZeroI2V after weight_reparam.py, which folds the adapters away: give the checkpoint from before it"


def refuse(source: ForeignCheckpoint) -> None:
    """Raise UserError, which says what it is, for a fine-tuned model or another model than CLIP."""
    path = source.path
    found = methods.find(source)
    if found is not None:
        raise UserError(
            f"{path} is a fine-tuned {found.method.title}, not a CLIP: `python -m inti_jax.convert "
            f"{shlex.quote(str(path))} --out F.safetensors --labels FILE` writes a file for inti_jax.load, "
            "--checkpoint and `model.start_from`"
        )
    if what := _what(source.arrays):
        raise UserError(
            f"{path} is {what}: give a CLIP image transformer, or a fine-tuned AIM, ST-Adapter or ZeroI2V"
        )
    if title := unsupported.family(source.arrays):
        raise UserError(f"{path} is {title}, which is not supported: {SUPPORTED}")


def _what(names: Iterable[str]) -> str | None:
    names = list(names)
    for pattern, what in _NAMES:
        if any(re.search(pattern, name) for name in names):
            return what
    ends = {name.rpartition("backbone.")[2] for name in names if "backbone." in name}
    if "temporal_embedding" in ends and "ln_pre.weight" in ends:
        return _FOLDED
    if any(re.search(r"(^|\.)cls_head\.", name) for name in names) and "ln_pre.weight" not in ends:
        return "one of mmaction's models, but neither AIM nor ZeroI2V"
    return None
