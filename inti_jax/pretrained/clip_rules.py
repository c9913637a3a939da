"""Tabulate the names and the layouts of weights in other libraries, and ours for them.

Each naming of CLIP, DINOv2 and SigLIP has a table. A rule pairs a name in the other library with a path here
and the layout between the two. Rules are read both ways, so that converted weights can be converted back.
`{i}` is a block's number. open_clip uses OpenAI's names.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A conversion of their array to ours, whose shape is known, and back."""

    their_shape: Callable[[Shape], Shape]
    to_ours: Callable[[np.ndarray, Shape], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


def _matrix(inputs: int) -> Layout:
    """Make the layout of a matrix: torch's is [out, in], ours has `inputs` input dimensions first."""

    def their_shape(shape: Shape) -> Shape:
        return math.prod(shape[inputs:]), math.prod(shape[:inputs])

    return Layout(
        their_shape,
        lambda array, shape: array.T.reshape(shape),
        lambda array: array.reshape(their_shape(array.shape)[::-1]).T,
    )


SAME = Layout(lambda shape: shape, lambda array, _: array, lambda array: array)
FLAT = Layout(
    lambda shape: (math.prod(shape),),
    lambda array, shape: array.reshape(shape),
    lambda array: array.reshape(-1),
)
MATRIX = _matrix(inputs=1)
HEADS_MATRIX = _matrix(inputs=2)  # the inputs are [heads, head size]
BATCHED = Layout(  # theirs has an axis for the batch
    lambda shape: (1, *shape), lambda array, _: array[0], lambda array: array[None]
)
TOKEN = Layout(  # theirs has axes for the batch and for the token
    lambda shape: (1, 1, *shape), lambda array, _: array[0, 0], lambda array: array[None, None]
)
CONV = Layout(  # OIHW to HWIO
    lambda shape: (shape[3], shape[2], shape[0], shape[1]),
    lambda array, _: array.transpose(2, 3, 1, 0),
    lambda array: array.transpose(3, 2, 0, 1),
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One weight's name in the other library, its path here and the layout between the two."""

    theirs: str
    ours: str
    layout: Layout
    # Where their queries, keys and values are apart, and ours are one array: the places on our axis -3.
    places: range | None = None

    def fits(self, path: str) -> bool:
        """Tell whether the rule is for our `path`."""
        return translate(path, (self,), by="ours") is not None


@dataclasses.dataclass(frozen=True)
class Naming:
    """A library's names for CLIP's weights."""

    name: str
    rules: tuple[Rule, ...]
    dropped: tuple[str, ...]  # regexes for entries that are no weights
    tower: str  # the prefix of the image tower's names
    markers: tuple[str, ...]  # endings of names by which an image tower is found, under any prefix


def norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Make the rules of a LayerNorm."""
    return Rule(f"{theirs}.weight", f"{ours}.scale", SAME), Rule(f"{theirs}.bias", f"{ours}.bias", SAME)


def linear(theirs: str, ours: str, layout: Layout = MATRIX) -> tuple[Rule, ...]:
    """Make the rules of a linear layer."""
    return Rule(f"{theirs}.weight", f"{ours}.kernel", layout), Rule(f"{theirs}.bias", f"{ours}.bias", SAME)


_QUERY, _KEY, _VALUE, _KEY_VALUE = range(1), range(1, 2), range(2, 3), range(1, 3)


def _apart(theirs: str, layers: Mapping[str, range], ours: str) -> tuple[Rule, ...]:
    """Make the rules of linear layers for queries, keys and values, by the places that each fills in ours."""
    return tuple(
        Rule(f"{theirs}.{layer}.{kind}", f"{ours}.attn.qkv.{our_kind}", layout, places)
        for layer, places in layers.items()
        for kind, our_kind, layout in (("weight", "kernel", MATRIX), ("bias", "bias", FLAT))
    )


def _openai_block(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}.attn.in_proj_weight", f"{ours}.attn.qkv.kernel", MATRIX),
        Rule(f"{theirs}.attn.in_proj_bias", f"{ours}.attn.qkv.bias", FLAT),
        *linear(f"{theirs}.attn.out_proj", f"{ours}.attn.out", HEADS_MATRIX),
        *linear(f"{theirs}.mlp.c_fc", f"{ours}.mlp.fc"),
        *linear(f"{theirs}.mlp.c_proj", f"{ours}.mlp.proj"),
        *norm(f"{theirs}.ln_1", f"{ours}.ln_1"),
        *norm(f"{theirs}.ln_2", f"{ours}.ln_2"),
    )


def _hf_block(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        *_apart(f"{theirs}.self_attn", {"q_proj": _QUERY, "k_proj": _KEY, "v_proj": _VALUE}, ours),
        *linear(f"{theirs}.self_attn.out_proj", f"{ours}.attn.out", HEADS_MATRIX),
        *linear(f"{theirs}.mlp.fc1", f"{ours}.mlp.fc"),
        *linear(f"{theirs}.mlp.fc2", f"{ours}.mlp.proj"),
        *norm(f"{theirs}.layer_norm1", f"{ours}.ln_1"),
        *norm(f"{theirs}.layer_norm2", f"{ours}.ln_2"),
    )


def _timm_block(theirs: str, ours: str, mlp: tuple[str, str] = ("fc1", "fc2")) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}.attn.qkv.weight", f"{ours}.attn.qkv.kernel", MATRIX),
        Rule(f"{theirs}.attn.qkv.bias", f"{ours}.attn.qkv.bias", FLAT),
        *linear(f"{theirs}.attn.proj", f"{ours}.attn.out", HEADS_MATRIX),
        *linear(f"{theirs}.mlp.{mlp[0]}", f"{ours}.mlp.fc"),
        *linear(f"{theirs}.mlp.{mlp[1]}", f"{ours}.mlp.proj"),
        *norm(f"{theirs}.norm1", f"{ours}.ln_1"),
        *norm(f"{theirs}.norm2", f"{ours}.ln_2"),
    )


OPENAI = Naming(
    "openai",
    (
        Rule("visual.conv1.weight", "tower.patch_embed.kernel", CONV),
        Rule("visual.class_embedding", "tower.class_embedding", SAME),
        Rule("visual.positional_embedding", "tower.positional_embedding", SAME),
        *norm("visual.ln_pre", "tower.ln_pre"),
        *_openai_block("visual.transformer.resblocks.{i}", "tower.blocks.{i}"),
        *norm("visual.ln_post", "tower.ln_post"),
        Rule("visual.proj", "projection.kernel", SAME),  # used as x @ proj: no transpose
        Rule("token_embedding.weight", "text.token_embedding.embedding", SAME),
        Rule("positional_embedding", "text.positional_embedding", SAME),
        *_openai_block("transformer.resblocks.{i}", "text.blocks.{i}"),
        *norm("ln_final", "text.ln_final"),
        Rule("text_projection", "text.projection.kernel", SAME),
        Rule("logit_scale", "logit_scale", SAME),
    ),
    (r"input_resolution|context_length|vocab_size", r"(transformer\.resblocks\.\d+\.)?attn_mask"),
    "visual.",
    ("class_embedding", "conv1.weight", "ln_pre.weight"),
)

HUGGINGFACE = Naming(
    "huggingface",
    (
        Rule("vision_model.embeddings.patch_embedding.weight", "tower.patch_embed.kernel", CONV),
        Rule("vision_model.embeddings.class_embedding", "tower.class_embedding", SAME),
        Rule("vision_model.embeddings.position_embedding.weight", "tower.positional_embedding", SAME),
        *norm("vision_model.pre_layrnorm", "tower.ln_pre"),  # their spelling
        *_hf_block("vision_model.encoder.layers.{i}", "tower.blocks.{i}"),
        *norm("vision_model.post_layernorm", "tower.ln_post"),
        Rule("visual_projection.weight", "projection.kernel", MATRIX),
        Rule("text_model.embeddings.token_embedding.weight", "text.token_embedding.embedding", SAME),
        Rule("text_model.embeddings.position_embedding.weight", "text.positional_embedding", SAME),
        *_hf_block("text_model.encoder.layers.{i}", "text.blocks.{i}"),
        *norm("text_model.final_layer_norm", "text.ln_final"),
        Rule("text_projection.weight", "text.projection.kernel", MATRIX),
        Rule("logit_scale", "logit_scale", SAME),
    ),
    (r"(text|vision)_model\.embeddings\.position_ids",),
    "vision_model.",
    ("embeddings.class_embedding", "embeddings.patch_embedding.weight", "pre_layrnorm.weight"),
)


def _dinov2(name: str, mlp: tuple[str, str]) -> Naming:
    """Make Hugging Face's naming of DINOv2, whose MLP has layers of the names `mlp`."""
    theirs, ours = "encoder.layer.{i}", "tower.blocks.{i}"
    qkv = _apart(f"{theirs}.attention.attention", {"query": _QUERY, "key": _KEY, "value": _VALUE}, ours)
    return Naming(
        name,
        (
            Rule("embeddings.cls_token", "tower.class_embedding", TOKEN),
            Rule("embeddings.register_tokens", "tower.registers", BATCHED),
            Rule("embeddings.position_embeddings", "tower.positional_embedding", BATCHED),
            Rule("embeddings.patch_embeddings.projection.weight", "tower.patch_embed.kernel", CONV),
            Rule("embeddings.patch_embeddings.projection.bias", "tower.patch_embed.bias", SAME),
            *norm(f"{theirs}.norm1", f"{ours}.ln_1"),
            *qkv,
            *linear(f"{theirs}.attention.output.dense", f"{ours}.attn.out", HEADS_MATRIX),
            Rule(f"{theirs}.layer_scale1.lambda1", f"{ours}.ls_1.scale", SAME),
            *norm(f"{theirs}.norm2", f"{ours}.ln_2"),
            *linear(f"{theirs}.mlp.{mlp[0]}", f"{ours}.mlp.fc"),
            *linear(f"{theirs}.mlp.{mlp[1]}", f"{ours}.mlp.proj"),
            Rule(f"{theirs}.layer_scale2.lambda1", f"{ours}.ls_2.scale", SAME),
            *norm("layernorm", "tower.ln_post"),
        ),
        (r"embeddings\.mask_token",),  # for pretraining alone
        "",
        ("embeddings.cls_token", "embeddings.patch_embeddings.projection.weight", "layernorm.weight"),
    )


DINOV2 = _dinov2("dinov2", ("fc1", "fc2"))
DINOV2_GATED = _dinov2("dinov2 with SwiGLU", ("weights_in", "weights_out"))


def _meta_dinov2(name: str, mlp: tuple[str, str]) -> Naming:
    """Make Meta's own naming of DINOv2, whose MLP has layers of the names `mlp`."""
    theirs, ours = "blocks.{i}", "tower.blocks.{i}"
    return Naming(
        name,
        (
            Rule("cls_token", "tower.class_embedding", TOKEN),
            Rule("register_tokens", "tower.registers", BATCHED),
            Rule("pos_embed", "tower.positional_embedding", BATCHED),
            Rule("patch_embed.proj.weight", "tower.patch_embed.kernel", CONV),
            Rule("patch_embed.proj.bias", "tower.patch_embed.bias", SAME),
            *_timm_block(theirs, ours, mlp),
            Rule(f"{theirs}.ls1.gamma", f"{ours}.ls_1.scale", SAME),
            Rule(f"{theirs}.ls2.gamma", f"{ours}.ls_2.scale", SAME),
            *norm("norm", "tower.ln_post"),
        ),
        (r"mask_token",),  # for pretraining alone
        "",
        ("cls_token", "patch_embed.proj.weight", "norm.weight"),
    )


META_DINOV2 = _meta_dinov2("Meta's dinov2", ("fc1", "fc2"))
META_DINOV2_GATED = _meta_dinov2("Meta's dinov2 with SwiGLU", ("w12", "w3"))

# Hugging Face's naming of SigLIP, and of SigLIP 2 with a fixed resolution.
SIGLIP = Naming(
    "siglip",
    (
        Rule("vision_model.embeddings.patch_embedding.weight", "tower.patch_embed.kernel", CONV),
        Rule("vision_model.embeddings.patch_embedding.bias", "tower.patch_embed.bias", SAME),
        Rule("vision_model.embeddings.position_embedding.weight", "tower.positional_embedding", SAME),
        *_hf_block("vision_model.encoder.layers.{i}", "tower.blocks.{i}"),
        *norm("vision_model.post_layernorm", "tower.ln_post"),
        Rule("vision_model.head.probe", "tower.pooling.probe", TOKEN),
        Rule("vision_model.head.attention.in_proj_weight", "tower.pooling.attn.qkv.kernel", MATRIX),
        Rule("vision_model.head.attention.in_proj_bias", "tower.pooling.attn.qkv.bias", FLAT),
        *linear("vision_model.head.attention.out_proj", "tower.pooling.attn.out", HEADS_MATRIX),
        *norm("vision_model.head.layernorm", "tower.pooling.ln_mlp"),
        *linear("vision_model.head.mlp.fc1", "tower.pooling.mlp.fc"),
        *linear("vision_model.head.mlp.fc2", "tower.pooling.mlp.proj"),
        Rule("text_model.embeddings.token_embedding.weight", "text.token_embedding.embedding", SAME),
        Rule("text_model.embeddings.position_embedding.weight", "text.positional_embedding", SAME),
        *_hf_block("text_model.encoder.layers.{i}", "text.blocks.{i}"),
        *norm("text_model.final_layer_norm", "text.ln_final"),
        *linear("text_model.head", "text.projection"),
        Rule("logit_scale", "logit_scale", BATCHED),
        Rule("logit_bias", "logit_bias", BATCHED),
    ),
    (r"(text|vision)_model\.embeddings\.position_ids",),
    "vision_model.",
    ("embeddings.patch_embedding.weight", "post_layernorm.weight", "head.probe"),
)


_TRUNK = "visual.trunk"

# open_clip's naming of SigLIP and SigLIP 2, whose image tower is timm's; timm has it without the prefix.
OPEN_CLIP_SIGLIP = Naming(
    "open_clip's siglip",
    (
        Rule(f"{_TRUNK}.patch_embed.proj.weight", "tower.patch_embed.kernel", CONV),
        Rule(f"{_TRUNK}.patch_embed.proj.bias", "tower.patch_embed.bias", SAME),
        Rule(f"{_TRUNK}.pos_embed", "tower.positional_embedding", BATCHED),
        *_timm_block(f"{_TRUNK}.blocks.{{i}}", "tower.blocks.{i}"),
        *norm(f"{_TRUNK}.norm", "tower.ln_post"),
        Rule(f"{_TRUNK}.attn_pool.latent", "tower.pooling.probe", TOKEN),
        *_apart(f"{_TRUNK}.attn_pool", {"q": _QUERY, "kv": _KEY_VALUE}, "tower.pooling"),
        *linear(f"{_TRUNK}.attn_pool.proj", "tower.pooling.attn.out", HEADS_MATRIX),
        *norm(f"{_TRUNK}.attn_pool.norm", "tower.pooling.ln_mlp"),
        *linear(f"{_TRUNK}.attn_pool.mlp.fc1", "tower.pooling.mlp.fc"),
        *linear(f"{_TRUNK}.attn_pool.mlp.fc2", "tower.pooling.mlp.proj"),
        Rule("text.token_embedding.weight", "text.token_embedding.embedding", SAME),
        Rule("text.positional_embedding", "text.positional_embedding", SAME),
        *_openai_block("text.transformer.resblocks.{i}", "text.blocks.{i}"),
        *norm("text.ln_final", "text.ln_final"),
        *linear("text.text_projection", "text.projection"),
        Rule("logit_scale", "logit_scale", SAME),
        Rule("logit_bias", "logit_bias", SAME),
    ),
    (),
    f"{_TRUNK}.",
    ("attn_pool.latent", "patch_embed.proj.weight", "pos_embed"),
)

NAMINGS = {
    naming.name: naming
    for naming in (
        *(OPENAI, HUGGINGFACE, SIGLIP, OPEN_CLIP_SIGLIP),
        *(DINOV2, DINOV2_GATED, META_DINOV2, META_DINOV2_GATED),
    )
}


# What can be converted, for errors.
SUPPORTED = (
    "convert takes the ViTs of CLIP (OpenAI's, open_clip's and Hugging Face's), of SigLIP with a fixed "
    "resolution (open_clip's, timm's and Hugging Face's) and of DINOv2 (Meta's and Hugging Face's)"
)


def is_parameter(path: str) -> bool:
    """Tell whether our `path` is a parameter of CLIP's, as opposed to one of a module added to it."""
    return any(translate(path, naming.rules, by="ours") is not None for naming in (OPENAI, DINOV2, SIGLIP))


def renamed(path: str, rule: Rule) -> str:
    """Translate our `path` to their name, by a rule that is known to apply."""
    found = translate(path, (rule,), by="ours")
    if found is None:
        raise ValueError(f"{rule} does not apply to {path}")
    return found[1]


def translate(name: str, rules: Iterable[Rule], *, by: str) -> tuple[Rule, str] | None:
    """Find the first rule whose side `by` matches `name`; give it with the name on its other side."""
    for rule in rules:
        template, other = (rule.theirs, rule.ours) if by == "theirs" else (rule.ours, rule.theirs)
        found = _pattern(template).fullmatch(name)
        if found is not None:
            return rule, other.format(i=found["i"]) if "{i}" in other else other
    return None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(re.escape("{i}"), "(?P<i>0|[1-9][0-9]*)"))
