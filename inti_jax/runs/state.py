"""Define the state of a training run: parameters, the average of those that train, and optimizer state.

Parameters are a flat `{path: array}`, with paths such as `tower.blocks.0.attn.qkv.kernel`, so that
rules for sharding, weight decay and freezing are regular expressions on one string.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding

from inti_jax.distributed import sharding
from inti_jax.models import freezing, parameters
from inti_jax.models.parameters import Params
from inti_jax.models.rngs import make_rngs
from inti_jax.models.video import VideoModel
from inti_jax.runs.evaluations import Weights
from inti_jax.runs.record import RunRecord


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The parameters by path, the optimizer's state, and `step`, the number of finished steps.

    Only `trainable` has gradients, optimizer state and `ema`, its moving average, which is None where
    `train.ema` is 0. The leaves are arrays, or the sharding or the shape of each.
    """

    step: Any
    trainable: dict[str, Any]
    frozen: dict[str, Any]
    opt_state: optax.OptState
    ema: Any = None

    def params(self, weights: Weights) -> dict[str, Any]:
        """Return all parameters by path, with those that train as they are ("raw") or averaged ("ema")."""
        chosen = self.trainable if weights == "raw" else self.ema
        assert chosen is not None, "there is no average"
        return {**chosen, **self.frozen}


def build_model(record: RunRecord, rngs: nnx.Rngs, *, folded: bool = False) -> VideoModel:
    """Build the model of a run; with `folded`, for parameters from `models.fold`."""
    return VideoModel(
        record.config.model,
        len(record.dataset.labels),
        resolution=record.config.data.resolution,
        num_frames=record.config.data.num_frames,
        backbone=record.backbone,
        folded=folded,
        dtype=jnp.dtype(record.config.train.dtype),
        rngs=rngs,
    )


@functools.lru_cache(maxsize=8)  # a start asks for it four times, each of half a second for 12 blocks
def abstract_model(record: RunRecord, *, folded: bool = False) -> VideoModel:
    """Build the model of a run with shapes instead of weights, for counting and planning.

    Callers share it, so none may change it.
    """
    return nnx.eval_shape(lambda: build_model(record, make_rngs(0), folded=folded))


def abstract_state(
    record: RunRecord, transform: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
    """Compute the shapes of a run's state, with the sharding of each part on `mesh`."""
    shapes = parameters.parameter_shapes(abstract_model(record))
    shardings = sharding.parameter_shardings(shapes, mesh)
    trained = freezing.trained(record.config.model, shapes)
    frozen_dtype = record.config.model.frozen_dtype
    trainable = {path: shape for path, shape in shapes.items() if path in trained}
    frozen = {
        path: jax.ShapeDtypeStruct(shape.shape, jnp.dtype(frozen_dtype), sharding=shardings[path])
        for path, shape in shapes.items()
        if path not in trainable
    }
    moments = jax.eval_shape(transform.init, trainable)
    trained_shardings = {path: shardings[path] for path in trainable}
    placed = jax.tree.map(_placed, trainable, trained_shardings)
    return TrainState(
        step=_placed(jax.ShapeDtypeStruct((), jnp.int32), sharding.replicated(mesh)),
        trainable=placed,
        frozen=frozen,
        opt_state=jax.tree.map(
            _placed, moments, _like_parameters(transform, moments, trained_shardings, mesh)
        ),
        ema=placed if record.config.train.ema else None,
    )


def _like_parameters(
    transform: optax.GradientTransformation,
    opt_state: Any,
    shardings: Mapping[str, NamedSharding],
    mesh: jax.sharding.Mesh,
) -> Any:
    """Shard an optimizer state: each moment is placed like its parameter."""
    return optax.tree_map_params(
        transform,
        lambda _, placed: placed,
        opt_state,
        dict(shardings),
        transform_non_params=lambda _: sharding.replicated(mesh),
    )


def first_average(target: TrainState, trainable: Params) -> Params | None:
    """Start the moving average from the weights `trainable`; None where `target` has no average."""
    if target.ema is None:
        return None
    # Copies, since the step reuses the memory of both.
    copy = jax.jit(lambda weights: jax.tree.map(jnp.copy, weights), out_shardings=shardings_of(target).ema)
    return copy(trainable)


def shardings_of(target: TrainState) -> TrainState:
    """Replace each leaf of a state by its sharding."""
    return jax.tree.map(lambda leaf: leaf.sharding, target)


def _placed(shape: jax.ShapeDtypeStruct, where: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)
