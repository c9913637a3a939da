"""The names and layouts of CLIP's weights elsewhere, as one table of rules for each naming.

Each rule pairs a name there with a path here and the layout between the two; it is read both ways, so that
what is converted can be given back. `{i}` is a block's number. OpenAI's names are open_clip's as well.
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
from inti_jax.pretrained.lazy import LazyArray

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array of theirs becomes ours (whose shape is known), and back."""

    their_shape: Callable[[Shape], Shape]
    to_ours: Callable[[np.ndarray, Shape], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


def _matrix(inputs: int) -> Layout:
    """torch's [out, in]; ours has its first `inputs` dimensions in, the others out."""

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
HEADS_MATRIX = _matrix(inputs=2)  # from [heads, head size]
CONV = Layout(  # OIHW to HWIO
    lambda shape: (shape[3], shape[2], shape[0], shape[1]),
    lambda array, _: array.transpose(2, 3, 1, 0),
    lambda array: array.transpose(3, 2, 0, 1),
)


@dataclasses.dataclass(frozen=True)
class Rule:
    theirs: str
    ours: str
    layout: Layout
    part: int | None = None  # of q, k, v, where theirs are three arrays and ours is one: axis -3


@dataclasses.dataclass(frozen=True)
class Naming:
    name: str
    rules: tuple[Rule, ...]
    dropped: tuple[str, ...]  # regexes of what a checkpoint may hold that is no weight
    lone_tower: tuple[str, str]  # a key that shows an image tower saved by itself, and the prefix it lost


def _norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    return Rule(f"{theirs}.weight", f"{ours}.scale", SAME), Rule(f"{theirs}.bias", f"{ours}.bias", SAME)


def _linear(theirs: str, ours: str, layout: Layout = MATRIX) -> tuple[Rule, ...]:
    return Rule(f"{theirs}.weight", f"{ours}.kernel", layout), Rule(f"{theirs}.bias", f"{ours}.bias", SAME)


def _openai_block(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}.attn.in_proj_weight", f"{ours}.attn.qkv.kernel", MATRIX),
        Rule(f"{theirs}.attn.in_proj_bias", f"{ours}.attn.qkv.bias", FLAT),
        *_linear(f"{theirs}.attn.out_proj", f"{ours}.attn.out", HEADS_MATRIX),
        *_linear(f"{theirs}.mlp.c_fc", f"{ours}.mlp.fc"),
        *_linear(f"{theirs}.mlp.c_proj", f"{ours}.mlp.proj"),
        *_norm(f"{theirs}.ln_1", f"{ours}.ln_1"),
        *_norm(f"{theirs}.ln_2", f"{ours}.ln_2"),
    )


def _hf_block(theirs: str, ours: str) -> tuple[Rule, ...]:
    qkv = tuple(
        Rule(f"{theirs}.self_attn.{letter}_proj.{kind}", f"{ours}.attn.qkv.{our_kind}", layout, part)
        for part, letter in enumerate("qkv")
        for kind, our_kind, layout in (("weight", "kernel", MATRIX), ("bias", "bias", FLAT))
    )
    return (
        *qkv,
        *_linear(f"{theirs}.self_attn.out_proj", f"{ours}.attn.out", HEADS_MATRIX),
        *_linear(f"{theirs}.mlp.fc1", f"{ours}.mlp.fc"),
        *_linear(f"{theirs}.mlp.fc2", f"{ours}.mlp.proj"),
        *_norm(f"{theirs}.layer_norm1", f"{ours}.ln_1"),
        *_norm(f"{theirs}.layer_norm2", f"{ours}.ln_2"),
    )


OPENAI = Naming(
    "openai",
    (
        Rule("visual.conv1.weight", "tower.patch_embed.kernel", CONV),
        Rule("visual.class_embedding", "tower.class_embedding", SAME),
        Rule("visual.positional_embedding", "tower.positional_embedding", SAME),
        *_norm("visual.ln_pre", "tower.ln_pre"),
        *_openai_block("visual.transformer.resblocks.{i}", "tower.blocks.{i}"),
        *_norm("visual.ln_post", "tower.ln_post"),
        Rule("visual.proj", "projection.kernel", SAME),  # used as x @ proj: no transpose
        Rule("token_embedding.weight", "text.token_embedding.embedding", SAME),
        Rule("positional_embedding", "text.positional_embedding", SAME),
        *_openai_block("transformer.resblocks.{i}", "text.blocks.{i}"),
        *_norm("ln_final", "text.ln_final"),
        Rule("text_projection", "text.projection.kernel", SAME),
        Rule("logit_scale", "logit_scale", SAME),
    ),
    (r"input_resolution|context_length|vocab_size", r"(transformer\.resblocks\.\d+\.)?attn_mask"),
    ("conv1.weight", "visual."),
)

HUGGINGFACE = Naming(
    "huggingface",
    (
        Rule("vision_model.embeddings.patch_embedding.weight", "tower.patch_embed.kernel", CONV),
        Rule("vision_model.embeddings.class_embedding", "tower.class_embedding", SAME),
        Rule("vision_model.embeddings.position_embedding.weight", "tower.positional_embedding", SAME),
        *_norm("vision_model.pre_layrnorm", "tower.ln_pre"),  # so spelt there
        *_hf_block("vision_model.encoder.layers.{i}", "tower.blocks.{i}"),
        *_norm("vision_model.post_layernorm", "tower.ln_post"),
        Rule("visual_projection.weight", "projection.kernel", MATRIX),
        Rule("text_model.embeddings.token_embedding.weight", "text.token_embedding.embedding", SAME),
        Rule("text_model.embeddings.position_embedding.weight", "text.positional_embedding", SAME),
        *_hf_block("text_model.encoder.layers.{i}", "text.blocks.{i}"),
        *_norm("text_model.final_layer_norm", "text.ln_final"),
        Rule("text_projection.weight", "text.projection.kernel", MATRIX),
        Rule("logit_scale", "logit_scale", SAME),
    ),
    (r"(text|vision)_model\.embeddings\.position_ids",),
    ("embeddings.class_embedding", "vision_model."),
)

NAMINGS = {naming.name: naming for naming in (OPENAI, HUGGINGFACE)}


@dataclasses.dataclass(frozen=True)
class Matched:
    """Their arrays by our path: one rule and array each, or three where q, k and v are apart."""

    path: Path
    naming: Naming
    parts: dict[str, list[tuple[Rule, str, LazyArray]]]
    dropped: list[str]
    unknown: list[str]


def match(path: Path, arrays: Mapping[str, LazyArray]) -> Matched:
    """Finds the naming of the checkpoint at `path`, and a place for each of its keys.

    Raises UserError where nothing looks like CLIP.
    """
    matches = (_match(path, naming, arrays) for naming in NAMINGS.values())
    best = max(matches, key=lambda found: len(found.parts))
    if not any(ours.startswith("tower.") for ours in best.parts):
        if any(name.startswith("tower.") for name in arrays):
            raise UserError(f"{path} is in the project's format already; --to gives it back")
        raise UserError(
            f"{path} is no CLIP image transformer: its keys are {_some(sorted(arrays)) or 'none'}"
        )
    return best


def _match(path: Path, naming: Naming, arrays: Mapping[str, LazyArray]) -> Matched:
    marker, prefix = naming.lone_tower
    if marker in arrays:
        arrays = {name if _is_projection(name) else prefix + name: array for name, array in arrays.items()}
    parts: dict[str, list[tuple[Rule, str, LazyArray]]] = {}
    dropped, unknown = [], []
    for name, array in arrays.items():
        found = _translate(name, naming.rules, by="theirs")
        if found is not None:
            rule, ours = found
            parts.setdefault(ours, []).append((rule, name, array))
        elif any(re.fullmatch(pattern, name) for pattern in naming.dropped):
            dropped.append(name)
        else:
            unknown.append(name)
    return Matched(path, naming, parts, dropped, unknown)


def _is_projection(name: str) -> bool:
    return name == "visual_projection.weight"


def fill(matched: Matched, shapes: Mapping[str, Shape]) -> dict[str, LazyArray]:
    """Each of our parameters, in float32, read when asked for.

    Raises UserError that names every kind of mismatch: a key with no place, a parameter not filled, or
    filled twice, a wrong shape, a type that is no float.
    """
    problems = []
    if matched.unknown:
        problems.append(f"keys that have no place here: {_some(matched.unknown)}")
    missing, wrong, result = [], [], {}
    for path, shape in shapes.items():
        found = sorted(matched.parts.get(path, []), key=lambda item: item[0].part or 0)
        wanted = [rule for rule in matched.naming.rules if _translate(path, (rule,), by="ours")]
        absent = [rule for rule in wanted if rule not in [item[0] for item in found]]
        missing += [_renamed(path, rule) for rule in absent]
        for rule, name, array in found:
            part_shape = _part_shape(shape, rule)
            if array.dtype == object:
                wrong.append(f"{name} is no tensor")
            elif array.shape != rule.layout.their_shape(part_shape):
                expected = list(rule.layout.their_shape(part_shape))
                wrong.append(f"{name} is {list(array.shape)}, not {expected}")
            elif array.dtype not in (np.float32, np.float16, np.dtype(ml_dtypes.bfloat16)):
                wrong.append(f"{name} is {array.dtype}, not a float of 16 or 32 bits")
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
    """Our parameters under the names and in the layouts of `naming`, bit for bit.

    Raises UserError where a parameter is not one of CLIP's.
    """
    result, strange = {}, []
    for path, array in params.items():
        rules = [rule for rule in naming.rules if _translate(path, (rule,), by="ours")]
        if not rules:
            strange.append(path)
        for rule in rules:
            shape = rule.layout.their_shape(_part_shape(array.shape, rule))
            result[_renamed(path, rule)] = LazyArray(shape, array.dtype, _giver(array, rule))
    if strange:
        raise UserError(f"{naming.name} has no name for {_some(strange)}, which CLIP has not")
    return result


def is_parameter(path: str) -> bool:
    """Whether our `path` is one of CLIP's, and not of something added to it."""
    return _translate(path, OPENAI.rules, by="ours") is not None


def _filler(found: list[tuple[Rule, str, LazyArray]], shape: Shape) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        result = np.empty(shape, np.float32)
        for rule, _, array in found:
            target = result if rule.part is None else result[..., rule.part, :, :]
            target[...] = rule.layout.to_ours(array.read(), target.shape)
        return result

    return read


def _giver(array: LazyArray, rule: Rule) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        ours = array.read()
        return rule.layout.to_theirs(ours if rule.part is None else ours[..., rule.part, :, :])

    return read


def _part_shape(shape: Shape, rule: Rule) -> Shape:
    return shape if rule.part is None else (*shape[:-3], *shape[-2:])


def _renamed(path: str, rule: Rule) -> str:
    """Their name for our `path`, by a rule known to apply."""
    found = _translate(path, (rule,), by="ours")
    if found is None:
        raise ValueError(f"{rule} is not for {path}")
    return found[1]


def _translate(name: str, rules: Iterable[Rule], *, by: str) -> tuple[Rule, str] | None:
    """The first rule whose side `by` is `name`, and the name on the other side."""
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
    """The first three, and how many more."""
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
