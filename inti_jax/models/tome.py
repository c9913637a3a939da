"""Merge the most similar patches of a frame in each block: ToMe (arXiv:2210.09461).

The pairs come from bipartite soft matching. Patches alternate between two sets. Each patch of the first set
proposes to merge with its most similar patch of the second. The `r` best proposals are merged, weighted by
the patches that the tokens stand for. The tokens before the patches never merge. After merging, the tokens no
longer form the patch grid.
"""

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


def match(
    keys: Float[Array, "BT P A Dh"], r: int, frames: int
) -> tuple[Int[Array, "BT r"], Int[Array, "BT r"], Int[Array, "BT left"]]:
    """Match patches for merging: return sources, their destinations, and the first set's patches that stay.

    Sources and the patches that stay, in ascending order, are indices into the first set, which is every
    other patch from the second one on. Destinations are indices into the second set, the others. With
    `frames` above 1, similarities are averaged over each clip's frames, which then all merge alike.
    """
    metric = reduce(keys.astype(jnp.float32), "b n a h -> b n h", "mean")
    metric = metric / jnp.linalg.norm(metric, axis=-1, keepdims=True)
    scores = jnp.einsum("bnh,bmh->bnm", metric[:, 1::2], metric[:, 0::2])
    if frames > 1:
        alike = reduce(scores, "(b t) n m -> b n m", "mean", t=frames)
        scores = repeat(alike, "b n m -> (b t) n m", t=frames)
    best, partner = scores.max(axis=-1), scores.argmax(axis=-1)
    order = jnp.argsort(best, axis=-1, descending=True)
    sources = order[:, :r]
    return sources, jnp.take_along_axis(partner, sources, axis=-1), jnp.sort(order[:, r:], axis=-1)


def merge(
    x: Float[Array, "BT N D"],
    sizes: Float[Array, "BT N"] | None,
    keys: Float[Array, "BT N A Dh"],
    r: int,
    frames: int,
    *,
    prefix: int,
) -> tuple[Float[Array, "BT M D"], Float[Array, "BT M"]]:
    """Merge patches; return the new tokens and the number of patches that each stands for. See `match`.

    The first `prefix` tokens stay as they are, in front. Then come the patches of the first set that stay,
    and the second set.
    """
    r = merged(x.shape[1] - prefix, r)
    sources, destinations, stay = map(keep, match(keys[:, prefix:], r, frames))
    ones = jnp.ones(x.shape[:2], jnp.float32) if sizes is None else sizes
    rows = jnp.arange(x.shape[0])[:, None]

    def pool(values: Float[Array, "BT N C"]) -> Float[Array, "BT M C"]:
        first, second = values[:, prefix + 1 :: 2], values[:, prefix::2]
        summed = second.at[rows, destinations].add(first[rows, sources])
        return jnp.concatenate([values[:, :prefix], first[rows, stay], summed], axis=1)

    weights = rearrange(ones, "b n -> b n 1")
    total = pool(weights)
    return keep(pool(x * weights.astype(x.dtype)) / total.astype(x.dtype)), keep(total[..., 0])
