"""A model's parameters by path: a flat `{path: array}`, with paths such as `tower.blocks.0.attn.qkv.kernel`.

Rules for sharding, weight decay and freezing are then regular expressions on one string, and a checkpoint
does not depend on the framework.
"""

from typing import Any

import jax
from flax import nnx, traverse_util

from inti_jax.models.video import VideoModel

Params = dict[str, jax.Array]


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
