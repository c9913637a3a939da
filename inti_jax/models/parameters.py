"""Convert a model's parameters to a flat `{path: array}` and back.

A path is a string such as `tower.blocks.0.attn.qkv.kernel`. Rules for sharding, weight decay and freezing are
therefore regular expressions on one string, and a checkpoint does not depend on the framework.
"""

from typing import Any

import jax
from flax import nnx, traverse_util

from inti_jax.models.video import VideoModel

Params = dict[str, jax.Array]


def flatten(state: nnx.State) -> dict[str, Any]:
    """Flatten `state` to `{path: leaf}`, with the keys of nested modules joined by dots."""
    nested = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    return {".".join(map(str, path)): leaf for path, leaf in nested.items()}


def merge(graphdef: nnx.GraphDef[VideoModel], params: Params) -> VideoModel:
    """Build the model with these parameters; the inverse of `flatten`."""
    paths = {tuple(int(k) if k.isdigit() else k for k in path.split(".")): v for path, v in params.items()}
    return nnx.merge(graphdef, traverse_util.unflatten_dict(paths))


def parameter_shapes(model: VideoModel) -> dict[str, jax.ShapeDtypeStruct]:
    """Give the shape and dtype of each parameter by path; where `model` is not abstract, its arrays."""
    return flatten(nnx.state(model, nnx.Param))
