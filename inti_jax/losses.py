"""Training losses."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "B K"], labels: Int[Array, " B"], smoothing: float
) -> Float[Array, " B"]:
    """Each video's cross-entropy in nats, with `smoothing` of the target spread over all classes."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
