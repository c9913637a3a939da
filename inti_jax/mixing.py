"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899) of whole clips, on the device, inside the step.

Rows 2i and 2i + 1 of a batch are mixed with each other: both are on one device, so nothing is sent.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from inti_jax.config import Mix
from inti_jax.models.dropout import Key


class Mixed(NamedTuple):
    """`own` is each row's own share in its clip; the rest is its partner's."""

    video: UInt8[Array, "B T H W 3"]
    own: Float[Array, " B"]


def partners(rows: Array) -> Array:
    """The rows in the order of each row's partner."""
    return rows.reshape(-1, 2, *rows.shape[1:])[:, ::-1].reshape(rows.shape)


def mix(video: UInt8[Array, "B T H W 3"], mask: Bool[Array, " B"], settings: Mix, key: Key) -> Mixed:
    """Each pair mixed with probability `settings.probability`, by one of the two ways.

    A pair with a row that `mask` leaves out stays as it is. Pixels are rounded: the model takes uint8.
    """
    pairs, (height, width) = video.shape[0] // 2, video.shape[2:4]
    apply_key, way_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
    applied = jax.random.bernoulli(apply_key, settings.probability, (pairs,)) & mask.reshape(-1, 2).all(
        axis=1
    )
    cutmix_share = settings.switch if settings.mixup and settings.cutmix else float(settings.cutmix > 0)
    cuts = jax.random.bernoulli(way_key, cutmix_share, (pairs,))

    blend = _beta(mixup_key, settings.mixup, pairs)
    box = _boxes(box_key, 1 - _beta(cutmix_key, settings.cutmix, pairs), height, width)
    outside = 1 - box.mean(axis=(1, 2))
    own = jnp.where(applied, jnp.where(cuts, outside, blend), 1.0)
    # The partner's share in every pixel.
    other = jnp.where(cuts[:, None, None], box, (1 - blend)[:, None, None])
    other = jnp.where(applied[:, None, None], other, 0.0)
    share = jnp.repeat(other, 2, axis=0)[:, None, :, :, None]
    mixed = video * (1 - share) + partners(video) * share
    return Mixed(jnp.round(mixed).astype(jnp.uint8), jnp.repeat(own, 2))


def _beta(key: Key, alpha: float, pairs: int) -> Float[Array, " P"]:
    return jax.random.beta(key, alpha, alpha, (pairs,)) if alpha else jnp.ones(pairs)


def _boxes(key: Key, area: Float[Array, " P"], height: int, width: int) -> Float[Array, "P H W"]:
    """1 in a box of about that share of the frame, with its centre anywhere in it, and 0 elsewhere."""
    centre = jax.random.uniform(key, (area.shape[0], 2))
    half = jnp.sqrt(area) / 2
    rows, columns = (
        jnp.abs((jnp.arange(side) + 0.5)[None] / side - centre[:, axis, None]) < half[:, None]
        for axis, side in enumerate((height, width))
    )
    return (rows[:, :, None] & columns[:, None, :]).astype(jnp.float32)
