"""The optimizer: AdamW behind gradient clipping, with warmup and a cosine, and decay by path rules."""

import re
from collections.abc import Iterable

import optax

from inti_jax.config import Train

# Whether weight decay applies, by parameter path. The first match counts; each parameter has to match.
_DECAY_RULES = (
    (r".*\.(bias|scale|logit_scale)", False),
    (r".*\.(class_embedding|positional_embedding)", False),
    (r".*\.logits", False),
    (r".*\.kernel", True),
)


def decayed(paths: Iterable[str]) -> dict[str, bool]:
    """For each parameter path, whether weight decay applies. Raises ValueError for one no rule covers."""
    result = {}
    for path in paths:
        matches = [decays for rule, decays in _DECAY_RULES if re.fullmatch(rule, path)]
        if not matches:
            raise ValueError(f"no weight-decay rule for parameter {path}")
        result[path] = matches[0]
    return result


def make_optimizer(config: Train, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The transformation for a flat `{path: array}` of parameters, and its learning-rate schedule."""
    warmup = round(config.warmup_fraction * steps)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=steps,
    )
    transform = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, weight_decay=config.weight_decay, mask=decayed),
    )
    return transform, schedule
