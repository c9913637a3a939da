"""Make the optimizer: gradient clipping and AdamW, with linear warmup and cosine decay.

Weight decay and the factors on the learning rate follow from rules on the paths of parameters.
"""

import re
from collections.abc import Iterable

import jax.numpy as jnp
import optax
from jaxtyping import Array

from inti_jax.config import Train
from inti_jax.models.heads import LOGIT_SCALE_RANGE

# (pattern of parameter paths, weight decay applies). The first match counts; each path has to match one.
_DECAY_RULES = (
    (r".*\.(bias|scale|logit_scale)", False),
    (r".*\.(class_embedding|positional_embedding|embedding)", False),
    (r".*\.logits", False),
    (r".*\.kernel", True),
)

_BLOCK = re.compile(r"tower\.blocks\.(\d+)\.")


def decayed(paths: Iterable[str]) -> dict[str, bool]:
    """Map each parameter path to True where weight decay applies. Raises ValueError where no rule matches."""
    result = {}
    for path in paths:
        matches = [decays for rule, decays in _DECAY_RULES if re.fullmatch(rule, path)]
        if not matches:
            raise ValueError(f"no weight-decay rule for parameter {path}")
        result[path] = matches[0]
    return result


def rates(config: Train, paths: Iterable[str]) -> dict[str, float]:
    """Map each parameter path to its factor on the learning rate.

    In the tower, `tower_rate` is multiplied by `layer_decay ** (L - i)` for block i of L (from 0), and by
    `layer_decay ** (L + 1)` for what comes before the first block, as in BEiT (arXiv:2106.08254).
    """
    paths = list(paths)
    blocks = [int(match[1]) for path in paths if (match := _BLOCK.match(path))]
    depth = max(blocks, default=-1) + 1

    def rate(path: str) -> float:
        module = path.partition(".")[0]
        if module == "head":
            return config.head_rate
        if module != "tower":
            return config.added_rate
        if match := _BLOCK.match(path):
            above = depth - int(match[1])
        else:
            above = 0 if path.startswith("tower.ln_post.") else depth + 1
        return config.tower_rate * config.layer_decay**above

    return {path: rate(path) for path in paths}


def within_range(updates: dict[str, Array], params: dict[str, Array]) -> dict[str, Array]:
    """Clip updates so that the logit scale of a text head stays in CLIP's range."""
    return {
        path: jnp.clip(params[path] + update, *LOGIT_SCALE_RANGE) - params[path]
        if path.endswith(".logit_scale")
        else update
        for path, update in updates.items()
    }


def make_schedule(config: Train, steps: int) -> optax.Schedule:
    """Make the learning-rate schedule: a linear warmup, then a cosine to zero at `steps`.

    It is a function of the number of steps done. Where `warmup_fraction` leaves no step for the cosine, the
    last step is at the peak.
    """
    warmup = min(round(config.warmup_fraction * steps), steps - 1)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=steps,
    )


def make_optimizer(config: Train, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Make the optimizer for a flat `{path: array}` of parameters, and its learning-rate schedule."""
    schedule = make_schedule(config, steps)

    def scale_by_rates(updates: dict[str, Array], params: dict[str, Array]) -> dict[str, Array]:
        factors = rates(config, updates)
        scaled = {path: update * factors[path] for path, update in updates.items()}
        return within_range(scaled, params)

    transform = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, weight_decay=config.weight_decay, mask=decayed),
        optax.stateless(scale_by_rates),
    )
    return transform, schedule
