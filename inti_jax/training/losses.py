"""Compute training losses and the weights of classes in them."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from inti_jax.config import ConfigError


def cross_entropy(
    logits: Float[Array, "B K"], labels: Int[Array, " B"], smoothing: float
) -> Float[Array, " B"]:
    """Compute each video's cross-entropy in nats, with `smoothing` of the target spread over all classes."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def class_weights(
    chosen: Literal["none", "inverse"] | tuple[float, ...], counts: Float[np.ndarray, " K"]
) -> Float[np.ndarray, " K"] | None:
    """Compute each class's factor on the loss of its videos; None: all 1.

    `counts` are the clips of each class in an epoch. The mean factor over these clips is 1, so that the loss
    keeps its scale: `inverse` is N / (classes * count). Batches are not normalised one by one, so that the
    weight of a video depends on no other. Raises ConfigError where `chosen` does not have K weights, or has
    only zeros for the classes that have clips.
    """
    if chosen == "none":
        return None
    if chosen == "inverse":
        weights = np.divide(1.0, counts, out=np.zeros_like(counts), where=counts > 0)
    else:
        weights = np.asarray(chosen, np.float64)
    if len(weights) != len(counts):
        raise ConfigError(
            f"config: `train.class_weights` has {len(weights)} weights, and the dataset {len(counts)} "
            "classes: give one for each, in the order of its labels"
        )
    total = (weights * counts).sum()
    if total <= 0:
        raise ConfigError(
            f"config: `train.class_weights` is {chosen}: it is 0 for all classes with training videos"
        )
    return (weights * counts.sum() / total).astype(np.float32)
