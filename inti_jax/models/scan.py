"""One loop over modules that differ in their parameters alone.

Unrolled, a deep tower is a program whose compilation takes time with its depth; a loop's does not.
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
    kept: Callable[..., bool],
) -> Array:
    """`x = body(module, x, *one)` for each of `modules`, in order, with its row `one` of each of `each`.

    `modules` are alike: `nnx.graphdef` of each is the same. `dtype` is that of their computation. `kept` is
    the policy of what the backward pass does not compute again.
    """
    graphdef = nnx.graphdef(modules[0])
    states = [_as_computed(module, dtype) for module in modules]
    stacked = {path: jnp.stack([state[path] for state in states]) for path in states[0]}

    def step(x: Array, inputs: Any) -> tuple[Array, None]:
        arrays, *one = inputs
        return body(nnx.merge(graphdef, traverse_util.unflatten_dict(arrays)), x, *one), None

    # In a loop nothing can take what is computed again to be what was computed before.
    step = jax.checkpoint(step, policy=kept, prevent_cse=False)
    return jax.lax.scan(step, x, (stacked, *each))[0]


def _as_computed(module: Any, dtype: DTypeLike) -> dict[tuple[Any, ...], Array]:
    """The parameters by path, kernels in `dtype`, as their layers compute with them: less to stack."""
    wanted = jnp.dtype(dtype)
    arrays = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(module)))
    return {
        path: array.astype(wanted)
        if path[-1] == "kernel" and wanted.itemsize < array.dtype.itemsize
        else array
        for path, array in arrays.items()
    }
