"""Average the weights that train over the steps: the exponential moving average of `train.ema`.

The average is part of `runs.state.TrainState`, hence of checkpoints. `runs/trained.py` chooses between it and
the raw weights.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int


def update(
    average: dict[str, Array] | None, weights: dict[str, Array], decay: float, step: Int[Array, ""]
) -> dict[str, Array] | None:
    """Move an average of the weights towards `weights`; None stays None.

    `step` is the number of steps that were finished before the one that led to `weights`. The average decays
    by `min(decay, (1 + step) / (10 + step))`, as TensorFlow's ExponentialMovingAverage does with
    `num_updates`: it starts from the initial weights, and this lets it forget them.
    """
    if average is None:
        return None
    done = step.astype(jnp.float32)
    decay_now = jnp.minimum(decay, (1 + done) / (10 + done))
    return optax.incremental_update(weights, average, 1 - decay_now)
