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
    """Jit `(params, video, mask) -> Blends`, over the global batch; every host has the result.

    It is a program of its own, so the step's stays as it is. What follows the last compressor is not
    computed, and there is no dropout.
    """

    def blends(params: Params, video: UInt8[Array, "B T H W 3"], mask: Bool[Array, " B"]) -> Blends:
        model = parameters.merge(graphdef, params)
        found = zip(model.after, model.blend_weights(video), strict=True)
        return {block: figures(weights, mask) for block, weights in found}

    return jax.jit(
        sharding.using(mesh, blends),
        out_shardings=sharding.replicated(mesh),
        compiler_options=sharding.compiler_options(mesh),
    )
