"""Count the activation memory of training: the bytes that the forward pass keeps for the backward pass.

The bytes are found by tracing, not by a formula. The backward pass of each part of the model is built for
abstract values, and the arrays that it refers to are counted. So the result depends on the parameters that
train: nothing is kept below the first trained one, and the input of a frozen matrix is not kept for its
gradient. It also depends on `model.remat` and on the dtypes.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from inti_jax.config import Model
from inti_jax.models import freezing, parameters
from inti_jax.models.video import BlockCost, VideoModel, compress
from inti_jax.models.vit import EMBEDDING


@dataclasses.dataclass(frozen=True)
class Saved:
    """Bytes kept for one view. A block's include its added layers and the compressor after it."""

    embedding: int
    blocks: tuple[int, ...]
    head: int


@dataclasses.dataclass(frozen=True)
class _Part:
    """A part of the model, as a function of (model, data).

    `data` holds its input and the arrays that come with it.
    """

    run: Callable[[VideoModel, Any], jax.Array]
    data: tuple[Any, ...]  # shapes; a gradient may be taken with respect to the first
    parameters: tuple[str, ...]  # the prefixes of its parameters' paths
    kind: Any  # parts of the same kind and data keep the same bytes


def saved(model: VideoModel, settings: Model, frames: int) -> Saved:
    """Count the bytes that a training step keeps of one view of `frames` frames.

    `model` may be abstract. Each array that JAX's backward pass refers to counts once; arrays computed from
    parameters alone do not count. XLA needs working memory besides, and is free to keep more or to recompute
    more.
    """
    graphdef, params = nnx.graphdef(model), parameters.parameter_shapes(model)
    trained = freezing.trained(settings, params)
    found: list[int] = []
    known: dict[Any, int] = {}
    reached = False  # true once an earlier part trains: the gradient then has to reach this part's input
    for part in _parts(model, frames):
        own = {path for path in trained if path.startswith(part.parameters)}
        # Drop the numbers of blocks and compressors, so that the same parameters of two blocks are equal.
        names = tuple(sorted(re.sub(r"\.\d+\.", ".", path) for path in own))
        alike = (part.kind, str(part.data), reached, names)
        if alike not in known:
            known[alike] = _kept(graphdef, part, params, own, reached) if own or reached else 0
        found.append(known[alike])
        reached = reached or bool(own)
    return Saved(found[0], tuple(found[1:-1]), found[-1])


def _parts(model: VideoModel, frames: int) -> Iterator[_Part]:
    """Yield the embedding, the blocks and the head, in this order."""
    width = model.size.width
    key = jax.eval_shape(lambda: jax.random.key(0)) if model.random else None

    video = jax.ShapeDtypeStruct((1, frames, *model.size.height_width, 3), jnp.uint8)
    yield _Part(lambda model, data: model.embed(data[0]), (video,), (*EMBEDDING, "temporal."), "embedding")

    sizes = None
    for cost in model.block_costs(frames):
        x = jax.ShapeDtypeStruct((cost.frames, cost.tokens, width), model.dtype)
        yield _block(model, cost, (x, sizes, key))
        if cost.tokens_out < cost.tokens or sizes is not None:
            sizes = jax.ShapeDtypeStruct((cost.frames, cost.tokens_out), jnp.float32)

    left = model.stages(frames)[-1].frames
    x = jax.ShapeDtypeStruct((left, cost.tokens_out, width), model.dtype)
    yield _Part(
        lambda model, data: model.head(model.pool(data[0], data[1], 1)),
        (x, sizes),
        ("tower.ln_post", "tower.pooling.", "head."),
        "head",
    )


def _block(model: VideoModel, cost: BlockCost, data: tuple[Any, ...]) -> _Part:
    """Make the part of one block, with its adapters and the compressor after it."""
    index = cost.index - 1
    behind = model.after.index(cost.index) if cost.index in model.after else None

    def run(model: VideoModel, data: Any) -> jax.Array:
        x, sizes, key = data
        y = model.block(index, x, sizes, cost.frames, key).tokens
        return y if behind is None else compress(model.compressors[behind], y, cost.frames)

    names = [f"tower.blocks.{index}.", f"adapters.{index}."]
    names += [] if behind is None else [f"compressors.{behind}."]
    kind = (cost.tokens_out, behind is None, model.drop_rates[index] > 0)
    return _Part(run, data, tuple(names), kind)


def _kept(
    graphdef: nnx.GraphDef[VideoModel],
    part: _Part,
    params: dict[str, jax.ShapeDtypeStruct],
    own: set[str],
    reached: bool,
) -> int:
    """Count the bytes kept for the gradient of the parameters `own` and, if `reached`, of the input."""
    varied = {path: params[path] for path in own}
    fixed = {path: shape for path, shape in params.items() if path not in own}

    def residuals(data: Any, varied: Any, fixed: Any) -> list[Any]:  # arrays, and constants of the model
        def run(varied: Any, x: Any) -> jax.Array:
            return part.run(parameters.merge(graphdef, {**varied, **fixed}), (x, *data[1:]))

        if reached:
            return jax.tree.leaves(jax.vjp(run, varied, data[0])[1])
        return jax.tree.leaves(jax.vjp(lambda varied: run(varied, data[0]), varied)[1])

    jaxpr = jax.make_jaxpr(residuals)(part.data, varied, fixed).jaxpr
    depends = set(jaxpr.invars[: len(jax.tree.leaves(part.data))])
    for equation in jaxpr.eqns:
        if any(isinstance(value, core.Var) and value in depends for value in equation.invars):
            depends.update(equation.outvars)
    kept = {value for value in jaxpr.outvars if isinstance(value, core.Var) and value in depends}
    shapes: list[Any] = [value.aval for value in kept]
    return sum(shape.size * shape.dtype.itemsize for shape in shapes)
