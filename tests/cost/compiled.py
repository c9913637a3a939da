"""Modules compiled as a whole: run op by op, each small operation would be compiled by itself."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx
from jax.extend import core

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


def products(function: Callable[..., Any], *shapes: Any) -> int:
    """The multiply-accumulates of the matrix products and convolutions of `function`, as JAX traces it."""
    return _products(jax.make_jaxpr(function)(*shapes).jaxpr)


def _products(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        output = equation.outvars[0].aval
        match equation.primitive.name:
            case "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                shape = equation.invars[0].aval.shape
                total += output.size * math.prod(shape[axis] for axis in contracted)
            case "conv_general_dilated":
                channels = equation.params["dimension_numbers"].rhs_spec[0]
                kernel = equation.invars[1].aval
                total += output.size * kernel.size // kernel.shape[channels]
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                total += equation.params.get("length", 1) * _products(inner)
    return total
