"""Modules compiled as a whole: run op by op, each small operation would be compiled by itself."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

M = TypeVar("M", bound=nnx.Module)


def initialize(build: Callable[[], M]) -> M:
    """What `build` returns."""
    graphdef = nnx.graphdef(nnx.eval_shape(build))
    return nnx.merge(graphdef, jax.jit(lambda: nnx.state(build()))())


def call(module: nnx.Module, *arguments: Any, method: str = "__call__") -> Any:
    graphdef, state = nnx.split(module)
    return jax.jit(lambda state, *arguments: getattr(nnx.merge(graphdef, state), method)(*arguments))(
        state, *arguments
    )
