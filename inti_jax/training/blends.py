"""Measure by which weights a model's compressors blend frames, while it trains."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from inti_jax.distributed import sharding
from inti_jax.models import parameters
from inti_jax.models.attribution import FAR
from inti_jax.models.parameters import Params
from inti_jax.models.video import VideoModel
from inti_jax.runs.monitor import Metrics

# The figures of each compressor, by the number of the block before it.
Blends = dict[int, Metrics]

# Most of a device's videos that one is measured of, and fewest videos of a batch that are measured.
_ONE_OF, _FEWEST = 4, 8


def learned(model: VideoModel) -> bool:
    """Tell whether the model has a compressor with parameters: the weights of `mean` and `drop` are fixed."""
    return any(jax.tree.leaves(nnx.state(compressor, nnx.Param)) for compressor in model.compressors)


def figures(weights: Float[Array, "B S P g"], mask: Bool[Array, " B"]) -> Metrics:
    """Compute how the weights of a compressor are distributed over the patches of the videos in `mask`.

    `mean_k` and `std_k` are the mean and the standard deviation of the weight of a group's frame k, from 1.
    `far` is the share of blended patches of which some frame's weight is further than `attribution.FAR` from
    1 / g, as in `attribution.far_from_equal`. All are NaN where no video counts.
    """
    group = weights.shape[-1]
    counts = jnp.broadcast_to(mask[:, None, None], weights.shape[:-1])
    patches = counts.sum()

    def mean(values: Float[Array, "B S P"]) -> Float[Array, ""]:
        return jnp.where(counts, values, 0).sum() / patches

    # Of the deviations from an equal weight, which are exactly 0 at the start.
    deviations = weights - 1 / group
    found = {}
    for frame in range(group):
        deviation = deviations[..., frame]
        offset = mean(deviation)
        found[f"mean_{frame + 1}"] = 1 / group + offset
        found[f"std_{frame + 1}"] = jnp.sqrt(mean(jnp.square(deviation - offset)))
    found["far"] = mean((jnp.abs(deviations) > FAR).any(axis=-1).astype(jnp.float32))
    return found


def compile_figures(graphdef: nnx.GraphDef[VideoModel], mesh: jax.sharding.Mesh) -> jax.stages.Wrapped:
    """Jit `(params, video, mask) -> Blends`, over videos of the global batch; every host has the result.

    A quarter of the videos is measured, or more of a small batch, so that a record costs little. It is a
    program of its own, so the step's stays as it is. What follows the last compressor is not computed, and
    there is no dropout.
    """

    def blends(params: Params, video: UInt8[Array, "B T H W 3"], mask: Bool[Array, " B"]) -> Blends:
        model = parameters.merge(graphdef, params)
        chosen = slice(None, None, _step(len(mask), sharding.batch_shards(mesh)))
        found = zip(model.after, model.blend_weights(video[chosen]), strict=True)
        return {block: figures(weights, mask[chosen]) for block, weights in found}

    return jax.jit(
        sharding.using(mesh, blends),
        out_shardings=sharding.replicated(mesh),
        compiler_options=sharding.compiler_options(mesh),
    )


def _step(batch: int, shards: int) -> int:
    """Choose which videos are measured: every how many, so that each shard has equally many of them."""
    steps = range(_ONE_OF, 1, -1)
    return next((step for step in steps if batch // step >= _FEWEST and batch // shards % step == 0), 1)
