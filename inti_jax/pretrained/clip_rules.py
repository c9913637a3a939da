"""Map weights between other libraries' names and layouts and ours, by tables of rules.

Each naming of CLIP, DINOv2 and SigLIP has a table. A rule pairs a name in the other library with a path here
and the layout between the two. Rules are read both ways, so that converted weights can be converted back.
`{i}` is a block's number. open_clip uses OpenAI's names.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np

from inti_jax.errors import UserError
from inti_jax.pretrained.lazy_array import LazyArray

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
        return _translate(path, (self,), by="ours") is not None


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

# Modules that torch wraps around others anywhere in a model: torch.compile, FSDP, activation checkpointing.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}

# Keys under which training code keeps the weights themselves, as opposed to averages or other models.
PLAIN = {"state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights"}


@dataclasses.dataclass(frozen=True)
class Matched:
    """A checkpoint's arrays by our path, each with its rule and its key.

    A path has one array, or three where q, k and v are separate. Keys are the file's own: all of CLIP's names
    follow `prefix` there. Where an image tower was saved by itself (`lone`), its names lack the naming's
    `tower` after `prefix`.
    """

    path: Path
    naming: Naming
    prefix: str
    lone: bool
    parts: dict[str, list[tuple[Rule, str, LazyArray]]]
    dropped: list[str]
    unknown: list[str]
    beside: list[str]  # the file's other entries, such as an optimizer's

    def key(self, name: str) -> str:
        """Build the file's key for a name of the naming."""
        return self.prefix + (name.removeprefix(self.naming.tower) if self.lone else name)

    def weights(self) -> dict[str, LazyArray]:
        """Give the checkpoint's arrays under the naming's own names."""
        return {renamed(ours, rule): array for ours, found in self.parts.items() for rule, _, array in found}


def unwrapped(path: Path, arrays: Iterable[str]) -> dict[str, str]:
    """Map the names of the arrays, without torch's wrappers, to the file's own keys.

    Raises UserError where a name occurs twice.
    """
    keys: dict[str, str] = {}
    for key in arrays:
        name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        if name in keys:
            raise UserError(f"{path} holds {name} twice: as {keys[name]} and as {key}")
        keys[name] = key
    return keys


def match(path: Path, arrays: Mapping[str, LazyArray]) -> Matched:
    """Find the CLIP in the checkpoint at `path` and its naming, and assign its keys to our paths.

    The model may be under a prefix, as in `model.visual.proj` or `backbone.class_embedding`. Keys without the
    prefix are beside the model. Raises UserError where nothing looks like CLIP's image transformer, where two
    candidates do equally, or where a name occurs twice.
    """
    keys = unwrapped(path, arrays)
    found = [
        assign(path, naming, keys, arrays, prefix, lone)
        for naming in NAMINGS.values()
        for prefix, lone in _places(naming, keys)
    ]
    most = max(len(matched.parts) for matched in found)
    best = [matched for matched in found if len(matched.parts) == most]
    # One or two matches are not enough: a ResNet has a `conv1` too.
    if sum(ours.startswith("tower.") for ours in best[0].parts) < 3:
        raise UserError(_what_else(path, keys))
    if len(best) > 1:
        plain = [matched for matched in best if set(matched.prefix.split(".")[:-1]) <= PLAIN]
        if len(plain) != 1:
            places = " and ".join(sorted(f"`{matched.prefix}`" for matched in best))
            raise UserError(
                f"{path} holds several image towers, under {places}: save only the one to convert"
            )
        best = plain
    return best[0]


def _places(naming: Naming, names: Iterable[str]) -> set[tuple[str, bool]]:
    """Find the prefixes under which a model may be; a flag marks an image tower saved by itself."""
    for marker in naming.markers:
        fronts = {
            name.removesuffix(marker) for name in names if name == marker or name.endswith(f".{marker}")
        }
        if fronts:
            wholes = {front for front in fronts if f".{front}".endswith(f".{naming.tower}")}
            return {(front.removesuffix(naming.tower), False) for front in wholes} | {
                (front, True) for front in fronts - wholes
            }
    return {("", False)}


def assign(
    path: Path,
    naming: Naming,
    keys: Mapping[str, str],
    arrays: Mapping[str, LazyArray],
    prefix: str,
    lone: bool = False,
) -> Matched:
    """Assign the names below `prefix` to our paths; `keys` maps all names to the file's keys."""
    parts: dict[str, list[tuple[Rule, str, LazyArray]]] = {}
    dropped, unknown, beside = [], [], []
    for whole, key in keys.items():
        if not whole.startswith(prefix):
            beside.append(key)
            continue
        name = whole.removeprefix(prefix)
        if lone and name != _HF_PROJECTION:
            name = naming.tower + name
        found = _translate(name, naming.rules, by="theirs")
        if found is not None:
            rule, ours = found
            parts.setdefault(ours, []).append((rule, key, arrays[key]))
        elif any(re.fullmatch(pattern, name) for pattern in naming.dropped):
            dropped.append(key)
        else:
            unknown.append(key)
    return Matched(path, naming, prefix, lone, parts, dropped, unknown, _grouped(beside, prefix))


# Hugging Face keeps the projection beside the tower, also where the tower was saved by itself.
_HF_PROJECTION = "visual_projection.weight"


def _grouped(keys: Iterable[str], prefix: str) -> list[str]:
    """Shorten keys to their first word, except those that share it with the model's prefix.

    An optimizer alone has thousands of keys.
    """
    near = prefix.partition(".")[0]
    words = ((key, key.partition(".")[0]) for key in keys)
    return sorted({key if word == near else word for key, word in words})


def _what_else(path: Path, names: Iterable[str]) -> str:
    """Explain why the checkpoint holds no image transformer of CLIP's."""
    names = sorted(names)
    if any(name.startswith("tower.") for name in names):
        return f"{path} is already in this project's format; --to exports it"
    kind = " but one of timm's models" if any(".trunk." in f".{name}" for name in names) else ""
    return f"{path} is not a CLIP image transformer{kind}: its keys are {_some(names) or 'none'}; {SUPPORTED}"


def fill(matched: Matched, shapes: Mapping[str, Shape]) -> dict[str, LazyArray]:
    """Fill each of our parameters from the checkpoint, as lazy arrays in float32.

    Raises a UserError that names every kind of mismatch: a key with no place, a parameter that is not in the
    architecture or not filled, a wrong shape, a type that is no float of 16 or 32 bits.
    """
    problems = []
    if matched.unknown:
        problems.append(f"keys with no place here: {_some(matched.unknown)}")
    missing, wrong, result = [], [], {}
    for path, shape in shapes.items():
        found = sorted(matched.parts.get(path, []), key=lambda item: item[0].theirs)
        wanted = [rule for rule in matched.naming.rules if rule.fits(path)]
        absent = [rule for rule in wanted if rule not in [item[0] for item in found]]
        missing += [matched.key(renamed(path, rule)) for rule in absent]
        for rule, name, array in found:
            part_shape = _part_shape(shape, rule)
            if array.dtype == object:
                wrong.append(f"{name} is not a tensor")
            elif array.shape != rule.layout.their_shape(part_shape):
                expected = list(rule.layout.their_shape(part_shape))
                wrong.append(f"{name} is {list(array.shape)}, not {expected}")
            elif array.dtype not in (np.float32, np.float16, np.dtype(ml_dtypes.bfloat16)):
                wrong.append(f"{name} is {array.dtype}, not a float of 16 or 32 bits{_remedy(array.dtype)}")
        result[path] = LazyArray(shape, np.dtype(np.float32), _filler(found, shape))
    extra = [name for path in matched.parts.keys() - shapes.keys() for _, name, _ in matched.parts[path]]
    if extra:
        problems.append(f"keys beyond this architecture: {_some(sorted(extra))}")
    if missing:
        problems.append(f"missing: {_some(missing)}")
    if wrong:
        problems.append(f"wrong: {_some(wrong)}")
    if problems:
        raise UserError(f"{matched.path}: {'; '.join(problems)}")
    return result


def to_theirs(params: Mapping[str, LazyArray], naming: Naming) -> dict[str, LazyArray]:
    """Convert our parameters to the names and layouts of `naming`, bit for bit.

    Raises UserError where a parameter is not one of CLIP's.
    """
    result, strange = {}, []
    for path, array in params.items():
        rules = [rule for rule in naming.rules if rule.fits(path)]
        if not rules:
            strange.append(path)
        for rule in rules:
            shape = rule.layout.their_shape(_part_shape(array.shape, rule))
            result[renamed(path, rule)] = LazyArray(shape, array.dtype, _giver(array, rule))
    if strange:
        raise UserError(f"{naming.name} has no name for {_some(strange)}, which is not part of CLIP")
    return result


def _remedy(dtype: np.dtype) -> str:
    """Suggest how to save weights of `dtype` so that they can be read."""
    if dtype.name.startswith("float"):
        return ": call model.half() or model.float() before saving it"
    return ""


def is_parameter(path: str) -> bool:
    """Tell whether our `path` is a parameter of CLIP's, as opposed to one of a module added to it."""
    return any(_translate(path, naming.rules, by="ours") is not None for naming in (OPENAI, DINOV2, SIGLIP))


def _filler(found: list[tuple[Rule, str, LazyArray]], shape: Shape) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        result = np.empty(shape, np.float32)
        for rule, _, array in found:
            target = _part(result, rule)
            target[...] = rule.layout.to_ours(array.read(), target.shape)
        return result

    return read


def _giver(array: LazyArray, rule: Rule) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        return rule.layout.to_theirs(_part(array.read(), rule))

    return read


def _part(ours: np.ndarray, rule: Rule) -> np.ndarray:
    """Give the view of our array that the rule fills."""
    return ours if rule.places is None else ours[..., rule.places.start : rule.places.stop, :, :]


def _part_shape(shape: Shape, rule: Rule) -> Shape:
    return shape if rule.places is None else (*shape[:-3], len(rule.places), *shape[-2:])


def renamed(path: str, rule: Rule) -> str:
    """Translate our `path` to their name, by a rule that is known to apply."""
    found = _translate(path, (rule,), by="ours")
    if found is None:
        raise ValueError(f"{rule} does not apply to {path}")
    return found[1]


def _translate(name: str, rules: Iterable[Rule], *, by: str) -> tuple[Rule, str] | None:
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


def _some(names: Iterable[str]) -> str:
    """List the first three names and the number of the others."""
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
