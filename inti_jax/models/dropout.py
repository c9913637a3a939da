"""Randomness in the forward pass of training: dropout and stochastic depth, by explicit keys.

Without a key, or at a rate of 0, everything passes as it is: that is how a model is evaluated. In a loop over
blocks a rate, and the number of a key, is an array.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from jaxtyping import Key as KeyArray

Key = KeyArray[Array, ""]
Rate = float | Float[Array, ""]


def dropout(x: Float[Array, "*B D"], rate: float, key: Key | None) -> Float[Array, "*B D"]:
    """Each element zero with probability `rate`; the others larger, so that the mean stays."""
    return _drop(x, rate, key, x.shape)


def drop_path(x: Float[Array, "BT N D"], frames: int, rate: Rate, key: Key | None) -> Float[Array, "BT N D"]:
    """A video's branch, `frames` rows of `x`, zero with probability `rate` (arXiv:1603.09382)."""
    videos = x.shape[0] // frames
    by_video = x.reshape(videos, -1)
    return _drop(by_video, rate, key, (videos, 1)).reshape(x.shape)


def fold_in(key: Key | None, data: int | Int[Array, ""]) -> Key | None:
    """A key for the part numbered `data`; none of none."""
    return None if key is None else jax.random.fold_in(key, data)


def _drop(x: Array, rate: Rate, key: Key | None, shape: tuple[int, ...]) -> Array:
    if key is None or (isinstance(rate, float) and rate == 0):
        return x
    keep = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros_like(x))
