"""Derive a checkpoint's architecture and settings from its array shapes and the files beside it."""

import dataclasses
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from inti_jax.config.backbones import (
    CLIP_MEAN,
    CLIP_STD,
    DINOV2_WITH_REGISTERS,
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    BackboneSize,
    Numerics,
)
from inti_jax.config.backbones import DINOV2 as DINOV2_NUMERICS
from inti_jax.config.backbones import SIGLIP as SIGLIP_NUMERICS
from inti_jax.config.resolution import Resolution
from inti_jax.errors import UsageError, UserError
from inti_jax.models.clip import Architecture
from inti_jax.models.pieces import Pieces, has_pieces, read_pieces
from inti_jax.models.text import TextSize
from inti_jax.models.tokenizer import Cleaning, Vocabulary, find_vocabulary, read_vocabulary
from inti_jax.pretrained.clip_file import Description
from inti_jax.pretrained.clip_rules import (
    DINOV2_GATED,
    HUGGINGFACE,
    META_DINOV2,
    META_DINOV2_GATED,
    OPEN_CLIP_SIGLIP,
    OPENAI,
    SIGLIP,
    SUPPORTED,
)
from inti_jax.pretrained.matching import Matched
from inti_jax.pretrained.sources import ForeignCheckpoint

log = logging.getLogger("inti_jax")

Activation = Literal["quick_gelu", "gelu"]

# Head widths of open_clip's models that are not 64 (ViT-H-14, ViT-g-14 and ViT-bigG-14), by tower width.
_HEAD_SIZES = {1280: 80, 1408: 88, 1664: 104}
# And of SigLIP's towers (so400m and g-opt), image's and text's.
_SIGLIP_HEAD_SIZES = {1152: 72, 1536: 96}

# Keys of open_clip's model config that may be set. Any other that is set makes the model another than CLIP.
_OPEN_CLIP_KEYS = {
    "vision_cfg": {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "patch_dropout"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}


def describe(
    source: ForeignCheckpoint,
    matched: Matched,
    *,
    activation: Activation | None = None,
    head_size: int | None = None,
    vocabulary: Path | None = None,
) -> Description:
    """Describe `source` for the metadata of the project's file.

    The keyword arguments supply what a bare weight file does not state. They must agree with what the source
    states. Raises UsageError where such an argument is needed or does not fit the source, and UserError where
    the source cannot be described.
    """
    naming = matched.naming
    stated: Callable[[ForeignCheckpoint], tuple[Any, Any]] = _stated_by_hf
    default_mean, default_std = CLIP_MEAN, CLIP_STD
    if naming is OPENAI:
        architecture = _from_shapes(source, matched, activation, head_size)
        stated = _stated_by_open_clip
    elif naming is OPEN_CLIP_SIGLIP:
        architecture = _from_open_clip_siglip(source, matched, activation, head_size)
        default_mean, default_std, stated = HALF, HALF, _stated_by_open_clip
    elif naming is HUGGINGFACE:
        architecture = _from_hf(source, matched, activation)
    elif naming is SIGLIP:
        architecture = _from_siglip(source, matched, activation, head_size)
        default_mean, default_std = HALF, HALF
    elif naming in (META_DINOV2, META_DINOV2_GATED):
        architecture = _from_meta_dinov2(source, matched, activation, head_size)
        default_mean, default_std, stated = IMAGENET_MEAN, IMAGENET_STD, _unstated
    else:
        architecture = _from_dinov2(source, matched, activation, head_size)
        default_mean, default_std = IMAGENET_MEAN, IMAGENET_STD
    mean, std = stated(source)
    read = _vocabulary(source, architecture, vocabulary)
    cleaning: Cleaning = "huggingface"
    if isinstance(read, Pieces):
        cleaning = read.cleaning
    elif matched.naming is OPENAI and read is not None:
        cleaning = "openai"  # open_clip cleans texts as OpenAI's library does
    return Description(
        architecture,
        _channels(mean, default_mean, source.path),
        _channels(std, default_std, source.path),
        read,
        cleaning,
    )


def _stated_by_open_clip(source: ForeignCheckpoint) -> tuple[Any, Any]:
    """Read the mean and the standard deviation of the pixels; None where they are not stated."""
    preprocess = (source.open_clip_config or {}).get("preprocess_cfg", {})
    return preprocess.get("mean"), preprocess.get("std")


def _stated_by_hf(source: ForeignCheckpoint) -> tuple[Any, Any]:
    """Read the mean and the standard deviation of the pixels; None where they are not stated."""
    preprocessor = source.preprocessor or {}
    return preprocessor.get("image_mean"), preprocessor.get("image_std")


def _unstated(_: ForeignCheckpoint) -> tuple[Any, Any]:
    """Give no mean and no standard deviation, for weights without settings beside them."""
    return None, None


def _from_shapes(
    source: ForeignCheckpoint, matched: Matched, activation: Activation | None, head_size: int | None
) -> Architecture:
    """Derive the architecture of weights in OpenAI's naming.

    Sizes come from the shapes, the rest from open_clip's config or the arguments.
    """
    config = (source.open_clip_config or {}).get("model_cfg", {})
    vision, text_config = config.get("vision_cfg", {}), config.get("text_cfg", {})
    for section, known in _OPEN_CLIP_KEYS.items():
        strange = {key for key, value in config.get(section, {}).items() if value} - known
        if strange:
            raise UserError(
                f"{source.path}: open_clip_config.json sets {section}.{min(strange)}, so the model is not a "
                "CLIP"
            )
    width = _size(matched, "tower.class_embedding", 0)
    said = vision.get("head_width")
    if said and head_size not in (None, said):
        raise UsageError(f"--head_size is {head_size}, but open_clip_config.json states {said}")
    if said and width % said:
        raise UserError(
            f"{source.path}: open_clip_config.json states head_width {said}, which does not divide the "
            f"width {width}"
        )
    text_width = _size(matched, "text.ln_final.scale", 0) if _has_text(matched) else 0
    # --head_size has to divide the width of each tower whose heads the config does not state.
    common = math.gcd(0 if said else width, 0 if text_config.get("heads") else text_width)
    positions = _size(matched, "tower.positional_embedding", 0) - 1
    patch = _size(matched, "tower.patch_embed.kernel", 2)
    resolution = _resolution(positions, patch, vision.get("image_size"), source.path)
    per_head = said or head_size or _HEAD_SIZES.get(width, 64)
    heads = _heads("image", width, per_head, common, source.path)
    mlp = _mlp(matched, "tower", width)
    image = BackboneSize(width, _depth(matched, "tower"), heads, patch, resolution, mlp=mlp)
    embed = _size(matched, "projection.kernel", 1) if "projection.kernel" in matched.parts else None
    text = None
    if _has_text(matched):
        embed = _size(matched, "text.projection.kernel", 1)
        tokens = _size(matched, "text.token_embedding.embedding", 0)
        text = TextSize(
            text_width,
            _depth(matched, "text"),
            text_config.get("heads") or _heads("text", text_width, head_size or 64, common, source.path),
            tokens,
            _size(matched, "text.positional_embedding", 0),
            tokens - 1,
            mlp=_mlp(matched, "text", text_width),
        )
    return Architecture(image, embed, text, Numerics(_openai_activation(source, matched, activation)))


def says_activation(source: ForeignCheckpoint, matched: Matched) -> bool:
    """Tell whether the checkpoint states its activation, so that no argument or guess is needed."""
    return matched.naming is not OPENAI or _said_activation(source, matched) is not None


def _said_activation(source: ForeignCheckpoint, matched: Matched) -> Activation | None:
    """Read the activation that a checkpoint in OpenAI's naming states; None where it states none.

    OpenAI's own models have QuickGELU. open_clip's have QuickGELU or GELU, and state it only in their config.
    """
    if source.open_clip_config is not None:
        quick = source.open_clip_config.get("model_cfg", {}).get("quick_gelu", False)
        return "quick_gelu" if quick else "gelu"
    if source.torchscript or matched.key("input_resolution") in matched.dropped:
        return "quick_gelu"
    return None


def _openai_activation(source: ForeignCheckpoint, matched: Matched, given: Activation | None) -> Activation:
    said = _said_activation(source, matched)
    if given is not None and said not in (None, given):
        raise UsageError(f"--activation is {given}, but {source.path} is a model with {said}")
    if given is None and said is None:
        log.warning(
            "%s does not state its activation: using quick_gelu, as OpenAI's models do. Most other models "
            "of open_clip, such as LAION's, need --activation gelu",
            source.path,
        )
    return given or said or "quick_gelu"


def _from_hf(source: ForeignCheckpoint, matched: Matched, given: Activation | None) -> Architecture:
    """Derive the architecture of weights in Hugging Face's naming from config.json.

    Hugging Face leaves values out of config.json that are its defaults; the same defaults apply here.
    """
    config = source.hf_config
    if config is None:
        raise UserError(
            f"{source.directory} has no config.json, which states the heads and the activation of Hugging "
            "Face's weights: copy it there"
        )
    settings = source.directory / "config.json"
    if config.get("model_type") not in ("clip", "clip_vision_model"):
        raise UserError(f"{settings} is of model type {config.get('model_type')!r}, not clip: {SUPPORTED}")
    whole = config["model_type"] == "clip"
    vision = config.get("vision_config") or {} if whole else config
    text = config.get("text_config") or {}
    try:
        image = BackboneSize(
            width=int(vision.get("hidden_size", 768)),
            layers=int(vision.get("num_hidden_layers", 12)),
            heads=int(vision.get("num_attention_heads", 12)),
            patch=int(vision.get("patch_size", 32)),
            resolution=int(vision.get("image_size", 224)),
        )
        inner = int(vision.get("intermediate_size", 3072))
        if inner != image.mlp_width:
            image = dataclasses.replace(image, mlp=inner)
        numerics = _hf_numerics(vision, given, source)
        embed = int((config if whole else vision).get("projection_dim", 512))
        text_size = None
        if _has_text(matched):
            tokens, end = int(text.get("vocab_size", 49408)), int(text.get("eos_token_id", 49407))
            text_width, text_inner = (
                int(text.get("hidden_size", 512)),
                int(text.get("intermediate_size", 2048)),
            )
            text_size = TextSize(
                width=text_width,
                layers=int(text.get("num_hidden_layers", 12)),
                heads=int(text.get("num_attention_heads", 8)),
                vocabulary=tokens,
                context=int(text.get("max_position_embeddings", 77)),
                # Older configs say 2, and their models take the highest id.
                end_token=tokens - 1 if end == 2 else end,
                mlp=None if text_inner == 4 * text_width else text_inner,
            )
            if _hf_numerics(text, given, source) != numerics:
                raise UserError(
                    f"{settings}: the towers differ in activation or epsilon, which is not supported"
                )
    except (TypeError, ValueError) as error:
        raise UserError(f"{settings}: {error}") from None
    sizes = [(image.width, image.heads)] + ([(text_size.width, text_size.heads)] if text_size else [])
    split = any(side % image.patch for side in image.height_width)
    if any(heads < 1 or width % heads for width, heads in sizes) or split:
        raise UserError(
            f"{settings}: a width is not a multiple of its heads, or image_size is not a multiple of "
            "patch_size"
        )
    projected = text_size is not None or "projection.kernel" in matched.parts
    return Architecture(image, embed if projected else None, text_size, numerics)


def _from_dinov2(
    source: ForeignCheckpoint, matched: Matched, given: Activation | None, head_size: int | None
) -> Architecture:
    """Derive the architecture of DINOv2 in Hugging Face's naming.

    Sizes come from the shapes, the rest from config.json or, where it leaves values out, Hugging Face's
    defaults.
    """
    config = _hf_settings(source, "gelu", given, head_size)
    settings = source.directory / "config.json"
    known = {"dinov2": "plain", "dinov2_with_registers": "antialiased"}
    if config.get("model_type") not in known:
        raise UserError(
            f"{settings} is of model type {config.get('model_type')!r}, not {' or '.join(known)}: {SUPPORTED}"
        )
    width = _size(matched, "tower.class_embedding", 2)
    try:
        heads, eps = int(config.get("num_attention_heads", 12)), float(config.get("layer_norm_eps", 1e-6))
    except (TypeError, ValueError) as error:
        raise UserError(f"{settings}: {error}") from None
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(
            f"{settings}: hidden_act {config['hidden_act']!r} is not gelu, the only one supported"
        )
    if heads < 1 or width % heads:
        raise UserError(
            f"{settings}: the width {width} is no multiple of {heads} heads: correct num_attention_heads"
        )
    numerics = Numerics("gelu", eps, known[config["model_type"]])  # type: ignore[arg-type]
    return Architecture(_dinov2_size(matched, heads), None, None, numerics)


def _from_meta_dinov2(
    source: ForeignCheckpoint, matched: Matched, given: Activation | None, head_size: int | None
) -> Architecture:
    """Derive the architecture of DINOv2 in Meta's naming from its shapes, since all agree in the rest.

    timm has models of the same names that are no DINOv2, but none with the token for masked patches.
    """
    if "tower.blocks.0.ls_1.scale" not in matched.parts or matched.key("mask_token") not in matched.dropped:
        raise UserError(_one_of_timms(source))
    if given is not None or head_size is not None:
        raise UsageError(
            f"{source.path} is a DINOv2, whose activation and heads are known: leave out the arguments for "
            "them"
        )
    width = _size(matched, "tower.class_embedding", 2)
    heads = _heads("image", width, 64, width, source.path)
    registers = "tower.registers" in matched.parts
    return Architecture(
        _dinov2_size(matched, heads), None, None, DINOV2_WITH_REGISTERS if registers else DINOV2_NUMERICS
    )


def _dinov2_size(matched: Matched, heads: int) -> BackboneSize:
    """Read the size of a DINOv2 from its shapes."""
    width, patch = _size(matched, "tower.class_embedding", 2), _size(matched, "tower.patch_embed.kernel", 2)
    side = _side(_size(matched, "tower.positional_embedding", 1) - 1, matched.path)
    gated = matched.naming in (DINOV2_GATED, META_DINOV2_GATED)
    return BackboneSize(
        width,
        _depth(matched, "tower"),
        heads,
        patch,
        side * patch,
        registers=_size(matched, "tower.registers", 1) if "tower.registers" in matched.parts else 0,
        mlp=_mlp(matched, "tower", width, parts=2 if gated else 1),
        gated=gated,
        layer_scale=True,
        pre_norm=False,
        patch_bias=True,
    )


def _one_of_timms(source: ForeignCheckpoint) -> str:
    return (
        f"{source.path} is one of timm's models, and neither a SigLIP with its attention pooling "
        f"(attn_pool) nor Meta's DINOv2, which is not supported: {SUPPORTED}"
    )


def _from_siglip(
    source: ForeignCheckpoint, matched: Matched, given: Activation | None, head_size: int | None
) -> Architecture:
    """Derive the architecture of SigLIP in Hugging Face's naming.

    Sizes come from the shapes, the rest from config.json or, where it leaves values out, Hugging Face's
    defaults.
    """
    config = _hf_settings(source, "gelu_tanh", given, head_size)
    settings = source.directory / "config.json"
    kind = config.get("model_type")
    if kind in ("siglip2", "siglip2_vision_model"):
        raise UserError(
            f"{settings} is of model type {kind!r}, SigLIP 2 for images of any shape (NaFlex), which is not "
            "supported: give a checkpoint of fixed resolution, such as siglip2-base-patch16-224"
        )
    if kind not in ("siglip", "siglip_vision_model"):
        raise UserError(
            f"{settings} is of model type {kind!r}, not siglip or siglip_vision_model: {SUPPORTED}"
        )
    if "tower.pooling.probe" not in matched.parts:
        raise UserError(
            f"{source.path} is a SigLIP without its attention pooling (vision_model.head), as other models "
            "hold it: give a SigLIP by itself"
        )
    vision = config.get("vision_config") or {} if kind == "siglip" else config
    text = config.get("text_config") or {}
    width, patch = _size(matched, "tower.ln_post.scale", 0), _size(matched, "tower.patch_embed.kernel", 2)
    try:
        numerics, heads = _siglip_numerics(vision, settings), int(vision.get("num_attention_heads", 12))
        resolution = int(vision.get("image_size", 224))
        text_heads = int(text.get("num_attention_heads", 12))
        text_numerics = _siglip_numerics(text, settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"{settings}: {error}") from None
    positions = _size(matched, "tower.positional_embedding", 0)
    if positions != (resolution // patch) ** 2:
        raise UserError(
            f"{settings}: image_size {resolution} and patches of {patch} do not make the {positions} "
            "positions of the weights: correct image_size"
        )
    text_width = _size(matched, "text.ln_final.scale", 0) if _has_text(matched) else 0
    for size, count in ((width, heads), (text_width, text_heads)):
        if count < 1 or size % count:
            raise UserError(
                f"{settings}: the width {size} is no multiple of {count} heads: correct num_attention_heads"
            )
    if _has_text(matched) and text_numerics != numerics:
        raise UserError(f"{settings}: the towers differ in activation or epsilon, which is not supported")
    return _siglip(matched, heads, text_heads, resolution, numerics)


def _from_open_clip_siglip(
    source: ForeignCheckpoint, matched: Matched, given: Activation | None, head_size: int | None
) -> Architecture:
    """Derive the architecture of SigLIP in open_clip's naming.

    Sizes come from the shapes, the heads from open_clip's config, the argument or the published widths. The
    activation is that of SigLIP's training, GELU by tanh. timm and open_clip compute the first SigLIP's with
    the exact GELU, to which it is close.
    """
    if "tower.pooling.probe" not in matched.parts:
        raise UserError(_one_of_timms(source))
    if given is not None:
        raise UsageError(f"{source.path} is a SigLIP, whose activation is known: leave out --activation")
    config = (source.open_clip_config or {}).get("model_cfg", {})
    text_config = config.get("text_cfg", {})
    read = {
        "no_causal_mask": (text_config.get("no_causal_mask"), True),
        "pool_type": (text_config.get("pool_type"), "last"),
        "norm_kwargs.eps": (text_config.get("norm_kwargs", {}).get("eps"), SIGLIP_NUMERICS.eps),
    }
    for key, (value, siglips) in read.items():
        if text_config and value != siglips:
            raise UserError(
                f"{source.path}: open_clip_config.json has text_cfg.{key} {value}, and SigLIP's is {siglips}"
            )
    width = _size(matched, "tower.ln_post.scale", 0)
    text_width = _size(matched, "text.ln_final.scale", 0) if _has_text(matched) else 0
    text_heads = text_config.get("heads")
    common = math.gcd(width, 0 if text_heads else text_width)
    resolution = _resolution(
        _size(matched, "tower.positional_embedding", 1),
        _size(matched, "tower.patch_embed.kernel", 2),
        config.get("vision_cfg", {}).get("image_size"),
        source.path,
    )

    def heads(tower: str, width: int) -> int:
        return _heads(tower, width, head_size or _SIGLIP_HEAD_SIZES.get(width, 64), common, source.path)

    return _siglip(
        matched,
        heads("image", width),
        text_heads or (heads("text", text_width) if text_width else 1),
        resolution,
        SIGLIP_NUMERICS,
    )


def _siglip(
    matched: Matched, heads: int, text_heads: int, resolution: Resolution, numerics: Numerics
) -> Architecture:
    """Make SigLIP's architecture of what the shapes say and these settings."""
    width = _size(matched, "tower.ln_post.scale", 0)
    image = BackboneSize(
        width,
        _depth(matched, "tower"),
        heads,
        _size(matched, "tower.patch_embed.kernel", 2),
        resolution,
        class_token=False,
        pooling="attention",
        mlp=_mlp(matched, "tower", width),
        pre_norm=False,
        patch_bias=True,
    )
    if not _has_text(matched):
        return Architecture(image, None, None, numerics)
    text_width = _size(matched, "text.ln_final.scale", 0)
    text = TextSize(
        text_width,
        _depth(matched, "text"),
        text_heads,
        _size(matched, "text.token_embedding.embedding", 0),
        _size(matched, "text.positional_embedding", 0),
        end_token=None,
        mlp=_mlp(matched, "text", text_width),
        causal=False,
        bias=True,
    )
    return Architecture(image, _size(matched, "text.projection.kernel", 0), text, numerics)


def _siglip_numerics(tower: dict[str, Any], settings: Path) -> Numerics:
    activation = tower.get("hidden_act", "gelu_pytorch_tanh")
    if activation != "gelu_pytorch_tanh":
        raise UserError(f"{settings}: hidden_act {activation!r} is not gelu_pytorch_tanh")
    return dataclasses.replace(SIGLIP_NUMERICS, eps=float(tower.get("layer_norm_eps", 1e-6)))


def _resolution(positions: int, patch: int, stated: Any, path: Path) -> Resolution:
    """Compute the resolution of images that have `positions` patches of `patch` pixels a side.

    It is `stated`, open_clip's `image_size`, where that is [height, width] or fits, and else the square that
    the patches cover. Raises UserError where [height, width] makes another number of patches.
    """
    match stated:
        case int(side) if patch > 0 and side > 0 and (side // patch) ** 2 == positions:
            return side  # may be a few pixels more than the patches cover, as 384 is for patches of 14
        case [int(height), int(width)]:
            if min(height, width, patch) > 0 and (height // patch) * (width // patch) == positions:
                return height, width
            raise UserError(
                f"{path}: image_size {stated} of open_clip_config.json and patches of {patch} do not make "
                f"{positions} positions"
            )
    try:
        return _side(positions, path) * patch
    except UserError as error:
        raise UserError(
            f"{error}: open_clip_config.json beside the weights should state image_size as [height, width]"
        ) from None


def _side(positions: int, path: Path) -> int:
    """Compute the side of the square grid that `positions` make. Raises UserError where they make none."""
    side = round(max(positions, 0) ** 0.5)
    if side**2 != positions:
        raise UserError(f"{path}: {positions} positions are not a square grid")
    return side


def _mlp(matched: Matched, tower: str, width: int, parts: int = 1) -> int | None:
    """Return the width of the MLPs, whose first layer has `parts` parts of it; None for 4 times `width`."""
    inner = _size(matched, f"{tower}.blocks.0.mlp.fc.kernel", 0) // parts
    return None if inner == 4 * width else inner


def _hf_settings(
    source: ForeignCheckpoint, stated: str, given: Activation | None, head_size: int | None
) -> dict[str, Any]:
    """Return the config.json of weights that state all, with `stated` as their activation.

    Raises UsageError where an argument says otherwise.
    """
    if source.hf_config is None:
        raise UserError(
            f"{source.directory} has no config.json, which states the heads of weights in Hugging Face's "
            "naming: copy it there"
        )
    if given not in (None, stated) or head_size is not None:
        raise UsageError(
            f"{source.path} states its activation and its heads: leave out the arguments for them"
        )
    return source.hf_config


def _hf_numerics(tower: dict[str, Any], given: Activation | None, source: ForeignCheckpoint) -> Numerics:
    activation = tower.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu"):
        raise UserError(
            f"{source.directory}/config.json: hidden_act {activation!r} is not quick_gelu or gelu"
        )
    if given not in (None, activation):
        raise UsageError(f"--activation is {given}, but config.json states {activation}")
    return Numerics(activation, float(tower.get("layer_norm_eps", 1e-5)))


def _vocabulary(
    source: ForeignCheckpoint, architecture: Architecture, given: Path | None
) -> Vocabulary | Pieces | None:
    if architecture.text is None:
        if given is not None:
            raise UsageError(f"--vocab {given}: {source.path} has no text tower")
        return None
    if architecture.sigmoid:
        if given is None and not has_pieces(source.directory):
            return None
        return read_pieces(given or source.directory, architecture.text.vocabulary)
    path = given or find_vocabulary(source.directory)
    return None if path is None else read_vocabulary(path, architecture.text.vocabulary)


def _has_text(matched: Matched) -> bool:
    return any(path.startswith("text.") for path in matched.parts)


def _depth(matched: Matched, tower: str) -> int:
    blocks = {int(path.split(".")[2]) for path in matched.parts if path.startswith(f"{tower}.blocks.")}
    return max(blocks, default=-1) + 1


def _heads(tower: str, width: int, per_head: int, common: int, path: Path) -> int:
    if width % per_head:
        valid = ", ".join(str(size) for size in range(1, 257) if common % size == 0)
        raise UsageError(
            f"{path}: attention heads of width {per_head} do not divide the {tower} tower's width {width}: "
            f"--head_size should be one of {valid}"
        )
    return width // per_head


def _size(matched: Matched, path: str, dimension: int) -> int:
    """Read the size along `dimension` of the array that fills `path`.

    Raises UserError where that array is missing or has too few dimensions.
    """
    found = matched.parts.get(path)
    if not found or len(found[0][2].shape) <= dimension:
        name = matched.key(next(rule.theirs for rule in matched.naming.rules if rule.ours == path))
        unknown = f"; keys with no place: {', '.join(matched.unknown[:3])}" if matched.unknown else ""
        problem = "wrong" if found else "missing"
        raise UserError(f"{matched.path}: {problem}: {name}, which determines the architecture{unknown}")
    return found[0][2].shape[dimension]


def _channels(values: Any, default: tuple[float, float, float], path: Path) -> tuple[float, float, float]:
    values = default if values is None else values
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError):
        raise UserError(f"{path}: mean and std should be three numbers, not {values!r}") from None
    return red, green, blue
