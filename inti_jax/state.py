"""What training changes and what it keeps: parameters by path, trainable and frozen, and the optimizer's.

Parameters are a flat `{path: array}`, with paths such as `tower.blocks.0.attn.qkv.kernel`, so that
rules for sharding, weight decay and freezing are regular expressions on one string.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, traverse_util

from inti_jax import sharding
from inti_jax.config import Config
from inti_jax.models.video import VideoModel

Params = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """`step` counts finished steps. Only `trainable` has gradients and optimizer state.

    The leaves are arrays, or for each of them its sharding or shape.
    """

    step: Any
    trainable: dict[str, Any]
    frozen: dict[str, Any]
    opt_state: optax.OptState


def build_model(config: Config, classes: int, rngs: nnx.Rngs) -> VideoModel:
    return VideoModel(config.model, classes, dtype=jnp.dtype(config.train.dtype), rngs=rngs)


def abstract_model(config: Config, classes: int) -> VideoModel:
    """The model without its weights: shapes alone, for counting and planning."""
    return nnx.eval_shape(lambda: build_model(config, classes, nnx.Rngs(0)))


def flatten(state: nnx.State) -> dict[str, Any]:
    """`{path: leaf}`, with the keys of nested modules joined by dots."""
    nested = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    return {".".join(map(str, path)): leaf for path, leaf in nested.items()}


def merge(graphdef: nnx.GraphDef[VideoModel], params: Params) -> VideoModel:
    """The model with these parameters. `flatten` undone."""
    paths = {tuple(int(k) if k.isdigit() else k for k in path.split(".")): v for path, v in params.items()}
    return nnx.merge(graphdef, traverse_util.unflatten_dict(paths))


def parameter_shapes(model: VideoModel) -> dict[str, jax.ShapeDtypeStruct]:
    return flatten(nnx.state(model, nnx.Param))


def abstract_state(
    config: Config, classes: int, transform: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
    """The shapes of a run's state, and where on `mesh` each part lives."""
    shapes = parameter_shapes(abstract_model(config, classes))
    shardings = sharding.parameter_shardings(shapes, mesh)
    moments = jax.eval_shape(transform.init, shapes)
    everywhere = sharding.replicated(mesh)
    return TrainState(
        step=_placed(jax.ShapeDtypeStruct((), jnp.int32), everywhere),
        trainable=jax.tree.map(_placed, shapes, shardings),
        frozen={},
        opt_state=jax.tree.map(
            _placed, moments, sharding.like_parameters(transform, moments, shardings, mesh)
        ),
    )


def init_state(
    config: Config, classes: int, transform: optax.GradientTransformation, target: TrainState
) -> TrainState:
    """A random start, made where `target` says: no device ever holds more than its own part of it."""

    def create() -> TrainState:
        trainable = flatten(nnx.state(build_model(config, classes, nnx.Rngs(config.train.seed)), nnx.Param))
        return TrainState(jnp.zeros((), jnp.int32), trainable, {}, transform.init(trainable))

    return jax.jit(create, out_shardings=shardings_of(target))()


def shardings_of(target: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.sharding, target)


def _placed(shape: jax.ShapeDtypeStruct, where: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)
