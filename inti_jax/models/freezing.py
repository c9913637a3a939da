"""Select the parameters that train: by the adaptation method and by what a user freezes or unfreezes."""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence

from inti_jax.config import ConfigError, Model
from inti_jax.models.vit import EMBEDDING

# Pairs of a pattern of parameter paths and whether these train. Each path has to match; the first match
# counts.
Rules = Sequence[tuple[str, bool]]

_FROZEN_TOWER: Rules = ((r"tower\..*", False), (r"(adapters|temporal|compressors|head)\..*", True))
_TRAINS: dict[str, Rules] = {
    "full": ((r".*", True),),
    "linear": _FROZEN_TOWER,
    "aim": ((r"tower\.ln_post\..*", True), *_FROZEN_TOWER),
    "st_adapter": _FROZEN_TOWER,
    "zero_i2v": ((r"tower\.ln_post\..*", True), *_FROZEN_TOWER),
    "lora": _FROZEN_TOWER,
}
_BELOW_BLOCKS = rf"({'|'.join(map(re.escape, EMBEDDING))})(\..*)?"


def trained(model: Model, paths: Iterable[str]) -> frozenset[str]:
    """Select the parameters that train from `paths`, which are those of all parameters of the model.

    Raises ConfigError where a pattern of `model.freeze` names no parameter that would train, or where the
    patterns leave none. Raises ValueError where no rule covers a path.
    """
    paths = tuple(paths)
    blocks = (re.match(r"tower\.blocks\.(\d+)\.", path) for path in paths)
    layers = 1 + max((int(block[1]) for block in blocks if block), default=-1)
    candidates = {path for path in paths if _by_rules(model, path, layers)}
    for pattern in model.freeze:
        if not any(_matches(path, pattern) for path in candidates):
            raise ConfigError(f"config: `model.freeze` has {pattern!r}, {_why_none(pattern, paths)}")
    found = frozenset(path for path in candidates if not _is_frozen(model, path))
    if candidates and not found:
        raise ConfigError(f"config: `model.freeze` is {model.freeze}, which freezes every parameter")
    return found


def trains(model: Model, path: str, layers: int) -> bool:
    """Tell whether the parameter at `path` trains, in a tower of `layers` blocks.

    It does not check the patterns of `model.freeze`; `trained` does. Raises ValueError where no rule covers
    the path.
    """
    return _by_rules(model, path, layers) and not _is_frozen(model, path)


def summary(model: Model) -> str:
    """Summarize how the freezing keys change the method's own choice; empty where they do not."""
    said = []
    if model.freeze_blocks:
        said.append(f"first {model.freeze_blocks} blocks frozen")
    if model.unfreeze_last:
        said.append(f"last {model.unfreeze_last} blocks trained")
    if model.freeze:
        said.append(f"frozen: {', '.join(model.freeze)}")
    return "; ".join(said)


def _by_rules(model: Model, path: str, layers: int) -> bool:
    """Tell whether the parameter at `path` trains as long as `model.freeze` does not name it."""
    rules = _TRAINS[model.adaptation]
    if model.unfreeze_last:
        blocks = "|".join(map(str, range(layers - model.unfreeze_last, layers)))
        rules = ((rf"tower\.(blocks\.({blocks})|ln_post|pooling)\..*", True), *rules)
    if model.freeze_blocks:
        blocks = "|".join(map(str, range(model.freeze_blocks)))
        rules = ((_BELOW_BLOCKS, False), (rf"tower\.blocks\.({blocks})\..*", False), *rules)
    matches = (value for rule, value in rules if re.fullmatch(rule, path))
    found = next(matches, None)
    if found is None:
        raise ValueError(f"no rule says whether {path} trains under {model.adaptation}")
    return found


def _is_frozen(model: Model, path: str) -> bool:
    return any(_matches(path, pattern) for pattern in model.freeze)


def _matches(path: str, pattern: str) -> bool:
    """Match `pattern` with the whole path of a parameter, or with that of a module it is in."""
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}.*")


def _why_none(pattern: str, paths: Sequence[str]) -> str:
    """Explain why `pattern` names no parameter that would train."""
    if any(_matches(path, pattern) for path in paths):
        return "none of which trains: remove it"
    modules = {".".join(path.split(".")[:depth]) for path in paths for depth in range(1, 7)}
    near = difflib.get_close_matches(pattern, modules, n=1)
    return "which matches no parameter of the model: " + (
        f"did you mean `{near[0]}`?" if near else "write a path such as `tower.blocks.0` or `tower.*.bias`"
    )
