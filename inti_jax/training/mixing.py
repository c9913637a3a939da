"""Apply mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899) to whole clips inside the training step.

It runs on the devices. Rows 2i and 2i + 1 of a batch are mixed with each other. Both are on one device, so
nothing is sent.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from inti_jax.config import Mix
from inti_jax.models.dropout import Key


class Mixed(NamedTuple):
    """Mixed clips; `own` is each row's share in its own clip, and the rest is its partner's."""

    video: UInt8[Array, "B T H W 3"]
    own: Float[Array, " B"]


def partners(rows: Array) -> Array:
    """Swap the two rows of each pair, so that each row becomes its partner."""
    return rows.reshape(-1, 2, *rows.shape[1:])[:, ::-1].reshape(rows.shape)


class Draws(NamedTuple):
    """Random draws for P pairs: if a pair is mixed, in which way, and the values for either way."""

    applied: Bool[Array, " P"]
    cuts: Bool[Array, " P"]  # True for CutMix, False for mixup
    blend: Float[Array, " P"]  # mixup: each row's own share
    area: Float[Array, " P"]  # CutMix: the box's area as a share of the frame
    centre: Float[Array, "P 2"]  # CutMix: the box's centre, from 0 to 1


def draw(settings: Mix, pairs: int, key: Key) -> Draws:
    """Draw for `pairs` pairs; each is mixed with probability `settings.probability`, in one of two ways."""
    apply_key, way_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
    cutmix_share = settings.switch if settings.mixup and settings.cutmix else float(settings.cutmix > 0)
    return Draws(
        applied=jax.random.bernoulli(apply_key, settings.probability, (pairs,)),
        cuts=jax.random.bernoulli(way_key, cutmix_share, (pairs,)),
        blend=_beta(mixup_key, settings.mixup, pairs),
        area=1 - _beta(cutmix_key, settings.cutmix, pairs),
        centre=jax.random.uniform(box_key, (pairs, 2)),
    )


def mix(video: UInt8[Array, "B T H W 3"], mask: Bool[Array, " B"], draws: Draws) -> Mixed:
    """Mix each pair as drawn.

    A pair stays as it is where `mask` is false for one of its rows. Pixels are rounded, because the model
    takes uint8.
    """
    height, width = video.shape[2:4]
    applied = draws.applied & mask.reshape(-1, 2).all(axis=1)
    cuts, blend = draws.cuts, draws.blend
    box = _boxes(draws.centre, draws.area, height, width)
    outside = 1 - box.mean(axis=(1, 2))
    own = jnp.where(applied, jnp.where(cuts, outside, blend), 1.0)
    # The partner's share in every pixel.
    other = jnp.where(cuts[:, None, None], box, (1 - blend)[:, None, None])
    other = jnp.where(applied[:, None, None], other, 0.0)
    share = jnp.repeat(other, 2, axis=0)[:, None, :, :, None]
    mixed = video * (1 - share) + partners(video) * share
    return Mixed(jnp.round(mixed).astype(jnp.uint8), jnp.repeat(own, 2))


def _beta(key: Key, alpha: float, pairs: int) -> Float[Array, " P"]:
    """Draw from Beta(alpha, alpha); 1 where `alpha` is 0."""
    return jax.random.beta(key, alpha, alpha, (pairs,)) if alpha else jnp.ones(pairs)


def _boxes(
    centre: Float[Array, "P 2"], area: Float[Array, " P"], height: int, width: int
) -> Float[Array, "P H W"]:
    """Make masks that are 1 in a box of about the share `area` of the frame around `centre`, else 0."""
    half = jnp.sqrt(area) / 2
    rows, columns = (
        jnp.abs((jnp.arange(side) + 0.5)[None] / side - centre[:, axis, None]) < half[:, None]
        for axis, side in enumerate((height, width))
    )
    return (rows[:, :, None] & columns[:, None, :]).astype(jnp.float32)
