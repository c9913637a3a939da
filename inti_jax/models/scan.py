"""Run modules that differ only in their parameters in one loop.

The time to compile an unrolled tower grows with its depth; that of a loop does not. Outside the step, each
module has its own parameters. The step stacks them, and takes their stacked gradients apart again.
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
    policy: Callable[..., bool],
) -> Array:
    """Compute `x = body(module, x, *rows)` for each of `modules`, in order, and return the last `x`.

    `rows` are the module's rows of the arrays in `each`; an array that is None has None for all. `modules`
    all have the same `nnx.graphdef`. `dtype` is that of their computation. `policy` is the `jax.checkpoint`
    policy for the values that the backward pass does not compute again.
    """
    graphdef = nnx.graphdef(modules[0])
    with jax.named_scope("stack"):
        states = [_as_computed(module, dtype) for module in modules]
        stacked = {path: jnp.stack([state[path] for state in states]) for path in states[0]}

    def step(x: Array, inputs: Any) -> tuple[Array, None]:
        arrays, *one = inputs
        return body(nnx.merge(graphdef, traverse_util.unflatten_dict(arrays)), x, *one), None

    # XLA cannot merge the recomputation in one loop with the first computation in another: CSE is no risk.
    step = jax.checkpoint(step, policy=policy, prevent_cse=False)
    return jax.lax.scan(step, x, (stacked, *each))[0]


def _as_computed(module: Any, dtype: DTypeLike) -> dict[tuple[Any, ...], Array]:
    """Give the parameters by path; cast kernels to `dtype`, as their layers do, so that less is stacked."""
    wanted = jnp.dtype(dtype)
    arrays = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(module)))
    return {
        path: array.astype(wanted)
        if path[-1] == "kernel" and wanted.itemsize < array.dtype.itemsize
        else array
        for path, array in arrays.items()
    }
