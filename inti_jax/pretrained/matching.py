"""Find a model in a checkpoint by the tables of `clip_rules`, and map its arrays to ours and back."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from inti_jax.errors import UserError
from inti_jax.pretrained.clip_rules import NAMINGS, SUPPORTED, Naming, Rule, Shape, renamed, translate
from inti_jax.pretrained.lazy_array import LazyArray

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
        found = translate(name, naming.rules, by="theirs")
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


def _some(names: Iterable[str]) -> str:
    """List the first three names and the number of the others."""
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
