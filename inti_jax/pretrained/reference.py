"""Run the same CLIP in torch from the same checkpoint, to compare our outputs with its own.

Hugging Face's weights run in transformers' own model. OpenAI's are loaded, under their own names, into a
model of torch's layers, so that a mistake in our rules cannot hide on both sides.
"""

import math
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from inti_jax.config.backbones import Numerics
from inti_jax.models.clip import Architecture
from inti_jax.pretrained import hf_settings
from inti_jax.pretrained.clip_rules import (
    HUGGINGFACE,
    META_DINOV2,
    META_DINOV2_GATED,
    OPEN_CLIP_SIGLIP,
    OPENAI,
    SIGLIP,
)
from inti_jax.pretrained.matching import Matched
from inti_jax.pretrained.sources import ForeignCheckpoint

Stages = dict[str, np.ndarray]


def stages(
    source: ForeignCheckpoint,
    matched: Matched,
    architecture: Architecture,
    images: Float[np.ndarray, "B H W 3"],
    tokens: Int[np.ndarray, "B L"] | None,
) -> Stages:
    """Run the reference model and give its outputs in float32 by name.

    The names are `image embedding`, `image block 1`, ..., `image feature`, and the same with `text`.
    """
    weights = {
        name: torch.from_numpy(np.array(array.read()).astype(np.float32))
        for name, array in matched.weights().items()
        if array.dtype.kind in "fV"
    }
    builders = {
        OPENAI: _openai,
        HUGGINGFACE: _transformers,
        SIGLIP: _siglip,
        OPEN_CLIP_SIGLIP: _open_clip_siglip,
        META_DINOV2: _meta_dinov2,
        META_DINOV2_GATED: _meta_dinov2,
    }
    build = builders.get(matched.naming, _dinov2)
    with torch.no_grad():
        model, modules = build(weights, source, architecture)
        found: Stages = {}
        for name, module in modules.items():
            module.register_forward_hook(_keep(found, name))
        model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), tokens)
    return found


def _keep(found: Stages, name: str) -> Any:
    """Make a hook that copies a module's output to `found[name]`."""

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        found[name] = tensor.numpy().copy()

    return hook


def _transformers(
    weights: dict[str, torch.Tensor], source: ForeignCheckpoint, architecture: Architecture
) -> Any:
    """Load transformers' model; give a function that runs it, and the modules to observe by name."""
    import transformers

    transformers.logging.set_verbosity_error()
    model: Any
    if architecture.text is not None:
        model = transformers.CLIPModel(transformers.CLIPConfig(**(source.hf_config or {})))
    else:
        config = dict(source.hf_config or {})
        vision = config.get("vision_config", config)
        model = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**vision))
        if architecture.embed is None:
            model.visual_projection = nn.Identity()
    known = model.state_dict()
    model.load_state_dict({name: weight for name, weight in weights.items() if name in known}, strict=True)
    model.eval()
    modules = {"image embedding": model.vision_model.pre_layrnorm}
    modules |= {f"image block {i}": m for i, m in enumerate(model.vision_model.encoder.layers, start=1)}
    modules["image feature"] = model.visual_projection
    if architecture.text is not None:
        modules["text embedding"] = model.text_model.embeddings
        modules |= {f"text block {i}": m for i, m in enumerate(model.text_model.encoder.layers, start=1)}
        modules["text feature"] = model.text_projection

    def run(images: torch.Tensor, tokens: np.ndarray | None) -> None:
        model.visual_projection(model.vision_model(pixel_values=images).pooler_output)
        if tokens is not None:
            pooled = model.text_model(input_ids=torch.from_numpy(tokens.astype(np.int64))).pooler_output
            model.text_projection(pooled)

    return run, modules


def _dinov2(weights: dict[str, torch.Tensor], source: ForeignCheckpoint, _: Architecture) -> Any:
    """Load transformers' DINOv2; give a function that runs it, and the modules to observe by name."""
    return _dinov2_of(weights, dict(source.hf_config or {}))


# The names of Meta's modules, and transformers' for them, in the order in which to replace.
_META_RENAMED = {
    "blocks.": "encoder.layer.",
    "cls_token": "embeddings.cls_token",
    "register_tokens": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "attn.proj.": "attention.output.dense.",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.w12.": "mlp.weights_in.",
    "mlp.w3.": "mlp.weights_out.",
}


def _meta_dinov2(weights: dict[str, torch.Tensor], _: ForeignCheckpoint, architecture: Architecture) -> Any:
    """Load Meta's DINOv2 into transformers'; see `_dinov2`."""
    renamed: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        name = name.replace("norm.", "layernorm.") if name.startswith("norm.") else name
        for theirs, here in _META_RENAMED.items():
            name = name.replace(theirs, here)
        if ".attn.qkv." in name:
            for layer, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[name.replace("attn.qkv.", f"attention.attention.{layer}.")] = part
        else:
            renamed[name] = value
    return _dinov2_of(renamed, hf_settings.dinov2(architecture))


def _dinov2_of(weights: dict[str, torch.Tensor], config: dict[str, Any]) -> Any:
    """Load weights under transformers' names into its DINOv2 of this config; see `_dinov2`."""
    import transformers

    transformers.logging.set_verbosity_error()
    model: Any
    kind: Any = transformers.Dinov2Model
    if config.get("model_type") == "dinov2_with_registers":
        kind = transformers.Dinov2WithRegistersModel
    # Not load_state_dict: the names of files and of modules differ, and the library translates.
    model = kind.from_pretrained(None, config=kind.config_class(**config), state_dict=weights).eval()
    last = nn.Identity()  # a module for the hook that copies the class token
    modules = {"image embedding": model.embeddings}
    modules |= {f"image block {i}": m for i, m in enumerate(model.encoder.layer, start=1)}
    modules["image feature"] = last

    def run(images: torch.Tensor, _: np.ndarray | None) -> None:
        last(model(pixel_values=images).pooler_output)

    return run, modules


def _siglip(weights: dict[str, torch.Tensor], source: ForeignCheckpoint, architecture: Architecture) -> Any:
    """Load transformers' SigLIP; give a function that runs it, and the modules to observe by name."""
    return _siglip_of(weights, dict(source.hf_config or {}), architecture)


# The names of timm's and open_clip's modules, and transformers' for them, in the order in which to replace.
_OPEN_CLIP_RENAMED = {
    "visual.trunk.": "vision_model.",
    "text.": "text_model.",
    "transformer.resblocks.": "encoder.layers.",
    "vision_model.blocks.": "vision_model.encoder.layers.",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "vision_model.pos_embed": "vision_model.embeddings.position_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.": "embeddings.token_embedding.",
    "vision_model.norm.": "vision_model.post_layernorm.",
    "ln_final.": "final_layer_norm.",
    "text_projection.": "head.",
    "attn_pool.latent": "head.probe",
    "attn_pool.norm.": "head.layernorm.",
    "attn_pool.mlp.": "head.mlp.",
    "attn_pool.proj.": "head.attention.out_proj.",
    "attn_pool.": "head.attention.",
    "norm1.": "layer_norm1.",
    "norm2.": "layer_norm2.",
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.proj.": "attn.out_proj.",
    "attn.": "self_attn.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}


def _open_clip_siglip(
    weights: dict[str, torch.Tensor], _: ForeignCheckpoint, architecture: Architecture
) -> Any:
    """Load SigLIP in open_clip's naming into transformers'; see `_siglip`."""
    renamed: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        for theirs, here in _OPEN_CLIP_RENAMED.items():
            name = name.replace(theirs, here)
        renamed[name] = value
    for name in list(renamed):
        kind = name.rpartition(".")[2]
        if ".self_attn.qkv." in name or ".self_attn.in_proj_" in name:
            stem = name.partition(".self_attn.")[0]
            kind = kind.removeprefix("in_proj_")
            for letter, part in zip("qkv", renamed.pop(name).chunk(3), strict=True):
                renamed[f"{stem}.self_attn.{letter}_proj.{kind}"] = part
        elif ".head.attention.q." in name:
            both = (renamed.pop(name), renamed.pop(name.replace(".q.", ".kv.")))
            renamed[f"vision_model.head.attention.in_proj_{kind}"] = torch.cat(both)
        elif name.endswith("position_embedding.weight"):
            renamed[name] = renamed[name].reshape(-1, renamed[name].shape[-1])
        elif name.startswith("logit_"):
            renamed[name] = renamed[name].reshape(1)
    return _siglip_of(renamed, hf_settings.siglip(architecture), architecture)


def _siglip_of(weights: dict[str, torch.Tensor], config: dict[str, Any], architecture: Architecture) -> Any:
    """Load weights under transformers' names into its SigLIP of this config; see `_siglip`."""
    import transformers

    transformers.logging.set_verbosity_error()
    text: Any = None
    if architecture.text is not None:
        whole = transformers.SiglipModel(transformers.SiglipConfig(**config))
        known = {name: weight for name, weight in weights.items() if name in whole.state_dict()}
        whole.load_state_dict(known, strict=True)
        vision, text = whole.vision_model.eval(), whole.text_model.eval()
    else:
        vision = transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(**config.get("vision_config", config))
        )
        tower = {name.removeprefix("vision_model."): weight for name, weight in weights.items()}
        vision.load_state_dict(tower, strict=True)
        vision.eval()
    modules: dict[str, nn.Module] = {"image embedding": vision.embeddings}
    modules |= {f"image block {i}": m for i, m in enumerate(vision.encoder.layers, start=1)}
    modules["image feature"] = vision.head
    if text is not None:
        modules["text embedding"] = text.embeddings
        modules |= {f"text block {i}": m for i, m in enumerate(text.encoder.layers, start=1)}
        modules["text feature"] = text.head

    def run(images: torch.Tensor, tokens: np.ndarray | None) -> None:
        vision(pixel_values=images)
        if text is not None:
            text(input_ids=torch.from_numpy(np.asarray(tokens).astype(np.int64)))

    return run, modules


class _QuickGELU(nn.Module):
    """OpenAI's approximation of GELU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it to each element."""
        return x * torch.sigmoid(1.702 * x)


class _Block(nn.Module):
    """A pre-norm transformer block under OpenAI's names. `causal` is the context of a causal mask."""

    def __init__(self, width: int, heads: int, mlp: int, numerics: Numerics, causal: int | None):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=numerics.eps)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, eps=numerics.eps)
        activation = _QuickGELU() if numerics.activation == "quick_gelu" else nn.GELU()
        layers = [("c_fc", nn.Linear(width, mlp)), ("act", activation)]
        self.mlp = nn.Sequential(OrderedDict([*layers, ("c_proj", nn.Linear(mlp, width))]))
        self.mask = None if causal is None else torch.full((causal, causal), -torch.inf).triu(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block to tokens [B, N, D]."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=self.mask)[0]
        return x + self.mlp(self.ln_2(x))


class _Blocks(nn.Module):
    """A tower's blocks under OpenAI's names."""

    def __init__(
        self, width: int, heads: int, mlp: int, layers: int, numerics: Numerics, causal: int | None = None
    ):
        super().__init__()
        self.resblocks = nn.Sequential(*(_Block(width, heads, mlp, numerics, causal) for _ in range(layers)))


class _Visual(nn.Module):
    """The image tower with its projection, under OpenAI's names."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        size, numerics = architecture.image, architecture.numerics
        self.conv1 = nn.Conv2d(3, size.width, size.patch, size.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(size.width))
        self.positional_embedding = nn.Parameter(torch.empty(math.prod(size.grid) + 1, size.width))
        self.ln_pre = nn.LayerNorm(size.width, eps=numerics.eps)
        self.transformer = _Blocks(size.width, size.heads, size.mlp_width, size.layers, numerics)
        self.ln_post = nn.LayerNorm(size.width, eps=numerics.eps)
        self.proj = None
        if architecture.embed is not None:
            self.proj = nn.Parameter(torch.empty(size.width, architecture.embed))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Encode images [B, 3, H, W] as features."""
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.ln_post(self.transformer.resblocks(self.ln_pre(x))[:, 0])
        return x if self.proj is None else x @ self.proj


class _Text(nn.Module):
    """The text tower with its projection, under OpenAI's names."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        size, embed = architecture.text, architecture.embed
        if size is None or embed is None:
            raise ValueError("no text tower")
        self.token_embedding = nn.Embedding(size.vocabulary, size.width)
        self.positional_embedding = nn.Parameter(torch.empty(size.context, size.width))
        self.transformer = _Blocks(
            size.width, size.heads, size.mlp_width, size.layers, architecture.numerics, size.context
        )
        self.ln_final = nn.LayerNorm(size.width, eps=architecture.numerics.eps)
        self.text_projection = nn.Parameter(torch.empty(size.width, embed))
        self.first = nn.Identity()  # a module for the hook that copies the embedding

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Encode texts' tokens [B, L] as features."""
        x = self.first(self.token_embedding(tokens) + self.positional_embedding)
        x = self.ln_final(self.transformer.resblocks(x))
        return x[torch.arange(len(x)), tokens.argmax(dim=1)] @ self.text_projection


def _openai(weights: dict[str, torch.Tensor], _: ForeignCheckpoint, architecture: Architecture) -> Any:
    """Load OpenAI's weights; give a function that runs the model, and the modules to observe by name."""
    known = _Visual(architecture)
    known.load_state_dict(
        {name.removeprefix("visual."): value for name, value in weights.items() if name.startswith("visual.")}
    )
    modules: dict[str, nn.Module] = {"image embedding": known.ln_pre}
    modules |= {f"image block {i}": m for i, m in enumerate(known.transformer.resblocks, start=1)}
    modules["image feature"] = known
    text = None
    if architecture.text is not None:
        text = _Text(architecture)
        text.load_state_dict({name: weights[name] for name in text.state_dict()})
        modules["text embedding"] = text.first
        modules |= {f"text block {i}": m for i, m in enumerate(text.transformer.resblocks, start=1)}
        modules["text feature"] = text
    for model in (known, text):
        if model is not None:
            model.eval()

    def run(images: torch.Tensor, tokens: np.ndarray | None) -> None:
        known(images)
        if text is not None:
            text(torch.from_numpy(np.asarray(tokens).astype(np.int64)))

    return run, modules
