"""One loop over modules that differ in their parameters alone.

Unrolled, a deep tower is a program whose compilation takes time in proportion to its depth; a loop's does not.
Parameters stay apart outside: they are stacked inside the step, and so are their gradients taken apart.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jax.typing import DTypeLike
from jaxtyping import Array


def scan(
    modules: Sequence[Any],
    body: Callable[..., Array],
    x: Array,
    *each: Array | None,
    dtype: DTypeLike,
    remat: bool,
) -> Array:
    """`x = body(module, x, *one)` for each of `modules`, in order, with its row `one` of each of `each`.

    `modules` are alike: `nnx.graphdef` of each is the same. `dtype` is that of their computation. With `remat` the
    backward pass computes each body again.
    """
    graphdef = nnx.graphdef(modules[0])
    states = [_as_computed(module, dtype) for module in modules]
    stacked = {path: jnp.stack([state[path] for state in states]) for path in states[0]}

    def step(x: Array, inputs: Any) -> tuple[Array, None]:
        arrays, *one = inputs
        return body(nnx.merge(graphdef, traverse_util.unflatten_dict(arrays)), x, *one), None

    return jax.lax.scan(jax.checkpoint(step, prevent_cse=False) if remat else step, x, (stacked, *each))[0]


def _as_computed(module: Any, dtype: DTypeLike) -> dict[tuple[Any, ...], Array]:
    """The parameters by path. Layers compute with their kernels in `dtype`: what is stacked is then smaller."""
    wanted = jnp.dtype(dtype)
    arrays = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(module)))
    return {
        path: array.astype(wanted)
        if path[-1] == "kernel" and wanted.itemsize < array.dtype.itemsize
        else array
        for path, array in arrays.items()
    }
