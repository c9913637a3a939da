"""Apply dropout and stochastic depth in training, with explicit keys.

Without a key, or at a rate of 0, everything passes unchanged: that is how a model is evaluated. In a loop
over blocks, the rate and the number that is folded into a key are arrays.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from jaxtyping import Key as KeyArray

Key = KeyArray[Array, ""]
Rate = float | Float[Array, ""]


def dropout(x: Float[Array, "*B D"], rate: float, key: Key | None) -> Float[Array, "*B D"]:
    """Drop each element to zero with probability `rate`; scale up the others to keep the mean."""
    return _drop(x, rate, key, x.shape)


def drop_path(x: Float[Array, "BT N D"], frames: int, rate: Rate, key: Key | None) -> Float[Array, "BT N D"]:
    """Drop a branch to zero, for a whole video, with probability `rate` (arXiv:1603.09382).

    A video is `frames` rows of `x`. The videos that keep the branch have it scaled up to keep the mean.
    """
    if key is None:  # as for a batch of no images, which has no shape by videos
        return x
    videos = x.shape[0] // frames
    by_video = x.reshape(videos, -1)
    return _drop(by_video, rate, key, (videos, 1)).reshape(x.shape)


def fold_in(key: Key | None, data: int | Int[Array, ""]) -> Key | None:
    """Derive the key for the part numbered `data`; without a key, return None."""
    return None if key is None else jax.random.fold_in(key, data)


def _drop(x: Array, rate: Rate, key: Key | None, shape: tuple[int, ...]) -> Array:
    if key is None or (isinstance(rate, float) and rate == 0):
        return x
    keep = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros_like(x))
