"""Recognise backbones that are not supported by their arrays' names, so that an error can say what they are.

The names are those of open_clip, timm, transformers and the models' own repositories.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping

from inti_jax.pretrained.lazy_array import LazyArray


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models, and patterns of names that its arrays have, all below one prefix."""

    title: str  # says what it is, after "is"
    marks: tuple[str, ...]
    dimensions: int | None = None  # of the first mark's array; None for any


_EVA02 = "an EVA-02, with rotary positions and SwiGLU"
_EVA = "an EVA"
_PERCEPTION = "a Perception Encoder, with rotary positions"
_DINOV3 = "a DINOv3, with rotary positions"
_CONVNEXT = "a ConvNeXt, a convolutional network"
_HYBRID = "a hybrid of a convolutional network and a ViT"
_NAFLEX = "a SigLIP 2 for images of any shape (NaFlex)"
_AIM_V2 = "an AIMv2, with RMSNorm and SwiGLU"
_INTERN = "an InternViT"

# The first that fits counts. The blocks' names of timm's models are also those of many models' own
# repositories.
_FAMILIES = (
    Family(_DINOV3, (r"embeddings\.register_tokens", r"(model\.)?layer\.0\.attention\.q_proj\.weight")),
    Family(_DINOV3, (r"storage_tokens", r"blocks\.0\.attn\.qkv\.weight")),
    Family(_DINOV3, (r"reg_token", r"blocks\.0\.gamma_1")),
    Family(_EVA02, (r"cls_token", r"blocks\.0\.mlp\.(fc1_g|w1)\.weight")),
    Family(_EVA02, (r"cls_token", r"blocks\.0\.attn\.inner_attn_ln\.weight")),
    Family(_EVA, (r"cls_token", r"pos_embed", r"blocks\.0\.attn\.q_bias")),
    Family(_INTERN, (r"embeddings\.class_embedding", r"encoder\.layers\.0\.ls1")),
    Family(_INTERN, (r"encoder\.layer\.0\.lambda_1", r"encoder\.layer\.0\.attention\.q_proj\.weight")),
    Family(
        "an EVA-CLIP",
        (
            r"embeddings\.class_embedding",
            r"embeddings\.patch_embedding\.bias",
            r"encoder\.layers\.0\.self_attn\.q_proj\.weight",
        ),
    ),
    Family(
        "the image transformer of BLIP or BLIP-2",
        (r"embeddings\.class_embedding", r"encoder\.layers\.0\.self_attn\.qkv\.weight"),
    ),
    Family("a CoCa", (r"conv1\.weight", r"attn_pool\.query")),
    Family(_PERCEPTION, (r"conv1\.weight", r"attn_pool\.probe")),
    Family(_PERCEPTION, (r"norm_pre\.weight", r"attn_pool\.latent|blocks\.0\.gamma_1")),
    Family(
        "a ViT with LayerScale under open_clip's names, such as a Perception Encoder",
        (r"conv1\.weight", r"transformer\.resblocks\.0\.ls_1\.gamma"),
    ),
    Family(_NAFLEX, (r"embeddings\.patch_embedding\.weight", r"head\.probe"), dimensions=2),
    Family(_NAFLEX, (r"embeds\.proj\.weight", r"blocks\.0\.attn\.qkv\.weight")),
    Family(_AIM_V2, (r"embeddings\.rms_norm\.weight", r"encoder\.layers\.0\.ffn\.gate_proj\.weight")),
    Family(_AIM_V2, (r"preprocessor\.patchifier\.proj\.weight", r"trunk\.post_trunk_norm\.weight")),
    Family(_AIM_V2, (r"patch_embed\.norm\.weight", r"blocks\.0\.mlp\.fc1_g\.weight")),
    Family(_HYBRID, (r"patch_embed\.backbone\..*", r"blocks\.0\.attn\.qkv\.weight")),
    Family(_CONVNEXT, (r"stages\.0\.(blocks\.|layers\.)?0\.(conv_dw|dwconv|depthwise_conv)\.weight",)),
    Family("a Swin transformer", (r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table",)),
    Family(
        "a CLIP with a ResNet, such as OpenAI's RN50, a convolutional network",
        (r"layer1\.0\.conv1\.weight", r"attnpool\.positional_embedding"),
    ),
    Family("a ResNet, a convolutional network", (r"conv1\.weight", r"layer1\.0\.conv1\.weight")),
)  # fmt: skip


def family(arrays: Mapping[str, LazyArray]) -> str | None:
    """Say which unsupported family's arrays these are; None for any other."""
    for found in _FAMILIES:
        places = [_prefixes(mark, arrays) for mark in found.marks]
        first = found.dimensions
        if first is not None:
            places[0] = {
                prefix: name for prefix, name in places[0].items() if len(arrays[name].shape) == first
            }
        if set.intersection(*map(set, places)):
            return found.title
    return None


def _prefixes(mark: str, names: Iterable[str]) -> dict[str, str]:
    """Map each prefix below which a name matches `mark` to that name."""
    pattern = re.compile(rf"((?:.*\.)?)(?:{mark})")
    return {match[1]: name for name in names if (match := pattern.fullmatch(name))}
