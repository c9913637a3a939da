"""Make the optimizer: gradient clipping and an optimizer by name, with linear warmup and cosine decay.

Weight decay and the factors on the learning rate follow from rules on the paths of parameters.
"""

import re
from collections.abc import Callable, Iterable

import jax.numpy as jnp
import optax
from jaxtyping import Array

from inti_jax.config import Train
from inti_jax.models.heads import LOGIT_SCALE_RANGE

# (pattern of parameter paths, weight decay applies). The first match counts; each path has to match one.
_DECAY_RULES = (
    (r".*\.(bias|scale|logit_scale)", False),
    (r".*\.(class_embedding|positional_embedding|registers|probe|embedding)", False),
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
            above = 0 if path.startswith(("tower.ln_post.", "tower.pooling.")) else depth + 1
        return config.tower_rate * config.layer_decay**above

    return {path: rate(path) for path in paths}


def within_range(updates: dict[str, Array], params: dict[str, Array]) -> dict[str, Array]:
    """Clip updates so that the logit scale of a text head stays in CLIP's range.

    A scale that starts above it, as SigLIP's, does not grow.
    """
    low, high = LOGIT_SCALE_RANGE
    return {
        path: jnp.clip(params[path] + update, low, jnp.maximum(high, params[path])) - params[path]
        if path.endswith(".logit_scale")
        else update
        for path, update in updates.items()
    }


def make_schedule(config: Train, steps: int) -> optax.Schedule:
    """Make the learning-rate schedule: a linear warmup from `start_rate`, then a cosine to `end_rate`.

    Both are shares of the peak, `learning_rate`. The schedule is a function of the number of steps done, and
    the cosine ends at `steps`, just after the last step. Where `warmup_fraction` leaves no step for the
    cosine, the last step is at the peak.
    """
    warmup = min(round(config.warmup_fraction * steps), steps - 1)
    return optax.warmup_cosine_decay_schedule(
        init_value=(config.start_rate if warmup else 1.0) * config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=steps,
        end_value=config.end_rate * config.learning_rate,
    )


def _adamw(config: Train, schedule: optax.Schedule) -> optax.GradientTransformation:
    (b1, b2), decay = config.adamw.betas, config.weight_decay
    return optax.adamw(schedule, b1, b2, config.adamw.epsilon, weight_decay=decay, mask=decayed)


def _lion(config: Train, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.lion(schedule, *config.lion.betas, weight_decay=config.weight_decay, mask=decayed)


def _sgd(config: Train, schedule: optax.Schedule) -> optax.GradientTransformation:
    # The decay is part of the gradient, as in PyTorch's SGD, for which the published values of it are.
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.sgd(schedule, config.sgd.momentum or None),
    )


_OPTIMIZERS: dict[str, Callable[[Train, optax.Schedule], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "lion": _lion,
    "sgd": _sgd,
}


def make_optimizer(config: Train, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Make the optimizer for a flat `{path: array}` of parameters, and its learning-rate schedule.

    Gradients are clipped before the weight decay, and the factors of `rates` scale the whole update.
    """
    schedule = make_schedule(config, steps)

    def scale_by_rates(updates: dict[str, Array], params: dict[str, Array]) -> dict[str, Array]:
        factors = rates(config, updates)
        scaled = {path: update * factors[path] for path, update in updates.items()}
        return within_range(scaled, params)

    transform = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        _OPTIMIZERS[config.optimizer](config, schedule),
        optax.stateless(scale_by_rates),
    )
    return transform, schedule
