"""Merge the most similar patches of a frame in each block: ToMe (arXiv:2210.09461).

The pairs come from bipartite soft matching. Patches alternate between two sets. Each patch of the first set
proposes to merge with its most similar patch of the second. The `r` best proposals are merged, weighted by
the patches that the tokens stand for. The tokens before the patches never merge. After merging, the tokens no
longer form the patch grid.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from jaxtyping import Array, Float, Int

from inti_jax.config import Model
from inti_jax.models.remat import keep


def merging(config: Model, layers: int) -> tuple[int, ...]:
    """Give for each block the number of patches that it is asked to merge away."""
    compression = config.compression
    if compression.kind != "tome":
        return (0,) * layers
    blocks = compression.after or tuple(range(1, layers + 1))
    r = compression.r if isinstance(compression.r, tuple) else (compression.r,) * len(blocks)
    by_block = dict(zip(blocks, r, strict=True))
    return tuple(by_block.get(block, 0) for block in range(1, layers + 1))


def merged(patches: int, r: int) -> int:
    """Count the patches of `patches` that vanish when `r` are asked for: at most half of them."""
    return min(r, patches // 2)


def macs(patches: int, head_size: int) -> int:
    """Count the multiply-accumulates of one frame's similarities."""
    return (patches // 2) * ((patches + 1) // 2) * head_size


class Matches(NamedTuple):
    """The patches that merge.

    The first set is every other patch from the second one on; the second set is the others.
    """

    sources: Int[Array, "BT r"]  # indices into the first set
    destinations: Int[Array, "BT r"]  # indices into the second set
    stay: Int[Array, "BT left"]  # the first set's patches that do not merge, in ascending order


def match(keys: Float[Array, "BT P A Dh"], r: int, frames: int) -> Matches:
    """Match `r` patches with others for merging, or half of them if that is fewer.

    With `frames` above 1, similarities are averaged over each clip's frames, which then all merge alike.
    """
    r = merged(keys.shape[1], r)
    metric = reduce(keys.astype(jnp.float32), "b n a h -> b n h", "mean")
    metric = metric / jnp.linalg.norm(metric, axis=-1, keepdims=True)
    scores = jnp.einsum("bnh,bmh->bnm", metric[:, 1::2], metric[:, 0::2])
    if frames != 1:  # which symbolic numbers of frames can tell, unlike `>`
        alike = reduce(scores, "(b t) n m -> b n m", "mean", t=frames)
        scores = repeat(alike, "b n m -> (b t) n m", t=frames)
    best, partner = scores.max(axis=-1), scores.argmax(axis=-1)
    order = jnp.argsort(best, axis=-1, descending=True)
    sources = order[:, :r]
    destinations = jnp.take_along_axis(partner, sources, axis=-1)
    stay = jnp.sort(order[:, r:], axis=-1)
    return Matches(*map(keep, (sources, destinations, stay)))


def merge(
    x: Float[Array, "BT N D"],
    sizes: Float[Array, "BT N"] | None,
    matches: Matches,
    *,
    prefix: int,
) -> tuple[Float[Array, "BT M D"], Float[Array, "BT M"]]:
    """Merge the patches of `matches`; return the new tokens and the number of patches each stands for.

    The first `prefix` tokens stay as they are, in front. Then come the patches of the first set that stay,
    and the second set.
    """
    sources, destinations, stay = matches
    ones = jnp.ones(x.shape[:2], jnp.float32) if sizes is None else sizes
    rows = jax.lax.broadcasted_iota(jnp.int32, destinations.shape, 0)

    def pool(values: Float[Array, "BT N C"]) -> Float[Array, "BT M C"]:
        first, second = values[:, prefix + 1 :: 2], values[:, prefix::2]
        merging, staying = (
            jnp.take_along_axis(first, places[..., None], axis=1) for places in (sources, stay)
        )
        summed = second.at[rows, destinations].add(merging)
        return jnp.concatenate([values[:, :prefix], staying, summed], axis=1)

    weights = rearrange(ones, "b n -> b n 1")
    total = pool(weights)
    return keep(pool(x * weights.astype(x.dtype)) / total.astype(x.dtype)), keep(total[..., 0])


def places(matches: Matches, tokens: int, *, prefix: int) -> Int[Array, "BT {tokens}"]:
    """Give, for each of a frame's `tokens` tokens, the index of the token that `merge` makes of it."""
    sources, destinations, stay = matches
    batch, left = stay.shape
    rows, second = jnp.arange(batch)[:, None], prefix + left  # the second set comes after those that stay
    first = jnp.zeros((batch, left + sources.shape[1]), jnp.int32)
    first = first.at[rows, stay].set(prefix + jnp.arange(left)[None])
    first = first.at[rows, sources].set(second + destinations)
    moved = jnp.tile(jnp.arange(tokens), (batch, 1)).at[:, prefix + 1 :: 2].set(first)
    count = tokens - prefix - first.shape[1]
    return moved.at[:, prefix::2].set(second + jnp.arange(count)[None])
