"""Attend among the tokens of a frame in one TPU kernel, which keeps logits and weights in the chip's memory.

XLA writes the logits of attention to HBM and reads them several times, in the backward pass too. At a ViT's
few tokens all logits of a head fit into the chip's vector memory: this kernel reads queries, keys and values
once and writes its output alone. The backward pass computes the weights again from the same inputs. JAX's own
kernels, splash and flash attention, are for long sequences: they take each head by itself, padded to a tile.

The packed output of one matrix product goes in as it is, `[B, N, 3 D]`, and its gradient comes out so. A tile
of 128 channels holds several heads. Products over channels take one of them by zeros in the others, which
costs nothing: the matrix unit is as wide as the tile.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from inti_jax.distributed import sharding

_LANES = 128  # channels of a tile
_ROWS = 8  # tokens of a tile
_FEWEST = 64  # tokens
_MEMORY = 14 * 2**20  # bytes of vector memory that a program may use; compilers give it 16 MiB

Packed = Float[Array, "B N P"]  # P = 3 D: queries, keys and values
Mixed = Float[Array, "B N D"]


def suits(tokens: int, heads: int, size: int, dtype: DTypeLike) -> bool:
    """Tell whether the kernel is for frames of so many tokens, and heads of so many channels.

    Heads have to fill tiles, and a frame has to fit into memory. For few tokens a program takes longer to
    start than to run.
    """
    width, item = heads * size, jnp.dtype(dtype).itemsize
    rows, columns = _padded(tokens, _ROWS), _padded(tokens, _LANES)
    # The backward pass: inputs and outputs twice, since the next frame's are moved meanwhile, and logits,
    # weights and their gradients.
    needed = 2 * 7 * rows * width * item + 6 * rows * columns * 4
    fills = width % _LANES == 0 and (_LANES % size == 0 or size % _LANES == 0)
    return fills and tokens >= _FEWEST and needed <= _MEMORY


def _padded(size: int, tile: int) -> int:
    return -(-size // tile) * tile


def available() -> bool:
    """Tell whether the mesh in use is of TPUs, and heads are whole on each."""
    return sharding.platform() == "tpu" and sharding.axis_size("tensor") == 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def attend(qkv: Packed, size: int, interpret: bool = False) -> Mixed:
    """Attend with heads of `size` channels, the softmax in float32, and logits scaled by 1/sqrt(size).

    `interpret` runs the kernel as JAX operations, on any platform and slowly, to check it.
    """
    return _over_batch(functools.partial(_forward, size=size, interpret=interpret), qkv)


def _attend_forward(qkv: Packed, size: int, interpret: bool) -> tuple[Mixed, Packed]:
    return _over_batch(functools.partial(_forward, size=size, interpret=interpret), qkv), qkv


def _attend_backward(size: int, interpret: bool, qkv: Packed, gradient: Mixed) -> tuple[Packed]:
    return (_over_batch(functools.partial(_backward, size=size, interpret=interpret), qkv, gradient),)


attend.defvjp(_attend_forward, _attend_backward)


def _over_batch(run: Callable[..., Array], *arrays: Array) -> Array:
    """Run the kernel on each device's frames: the compiler cannot split a kernel itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return run(*arrays)
    spec = PartitionSpec(("data", "fsdp"))
    return jax.shard_map(run, in_specs=(spec,) * len(arrays), out_specs=spec, check_vma=False)(*arrays)


def _forward(qkv: Packed, *, size: int, interpret: bool) -> Mixed:
    batch, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    return pl.pallas_call(
        functools.partial(_forward_kernel, size=size),
        grid=(batch,),
        in_specs=[_block(tokens, 3 * width)],
        out_specs=_block(tokens, width),
        out_shape=jax.ShapeDtypeStruct((batch, tokens, width), qkv.dtype),
        cost_estimate=_cost(qkv, 4 * tokens**2 * width, 4 * width),
        compiler_params=_PARALLEL,
        interpret=interpret,
        name="attention",
    )(qkv)


def _backward(qkv: Packed, gradient: Mixed, *, size: int, interpret: bool) -> Packed:
    batch, tokens, width = gradient.shape
    return pl.pallas_call(
        functools.partial(_backward_kernel, size=size),
        grid=(batch,),
        in_specs=[_block(tokens, 3 * width), _block(tokens, width)],
        out_specs=_block(tokens, 3 * width),
        out_shape=jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
        cost_estimate=_cost(qkv, 10 * tokens**2 * width, 7 * width),
        compiler_params=_PARALLEL,
        interpret=interpret,
        name="attention_backward",
    )(qkv, gradient)


# Frames are independent, and may go to both cores of a chip that has two.
_PARALLEL = pltpu.CompilerParams(dimension_semantics=("parallel",))


def _block(tokens: int, width: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, tokens, width), lambda frame: (frame, 0, 0))


def _cost(packed: Array, flops: int, channels: int) -> pl.CostEstimate:
    """Say what XLA should count: `flops` a frame, and for each token `channels`, with the padding of tokens.

    XLA knows nothing else of a kernel.
    """
    batch, tokens, _ = packed.shape
    return pl.CostEstimate(
        flops=batch * flops,
        bytes_accessed=batch * _padded(tokens, _ROWS) * channels * packed.dtype.itemsize,
        transcendentals=0,
    )


def _forward_kernel(qkv_ref, mixed_ref, *, size: int) -> None:
    for lanes, heads in _tiles(mixed_ref.shape, size):
        q, k, v = (qkv_ref[:, part] for part in lanes)
        mixed = jnp.zeros(q.shape, jnp.float32)
        for own in heads:
            logits = _product(_masked(q, own), k, 1, 1) * size**-0.5
            raised = jnp.exp(logits - logits.max(axis=1, keepdims=True))
            weights = raised / raised.sum(axis=1, keepdims=True)
            mixed = jnp.where(own, _product(weights.astype(v.dtype), v, 1, 0), mixed)
        mixed_ref[:, lanes[0]] = mixed.astype(mixed_ref.dtype)


def _backward_kernel(qkv_ref, gradient_ref, found_ref, *, size: int) -> None:
    for lanes, heads in _tiles(gradient_ref.shape, size):
        q, k, v = (qkv_ref[:, part] for part in lanes)
        d_mixed = gradient_ref[:, lanes[0]]
        d_q = d_k = d_v = jnp.zeros(q.shape, jnp.float32)
        for own in heads:
            # Transposed, [keys, queries]: two of the products over tokens then need no transposition.
            logits = _product(k, _masked(q, own), 1, 1) * size**-0.5
            raised = jnp.exp(logits - logits.max(axis=0, keepdims=True))
            weights = raised / raised.sum(axis=0, keepdims=True)
            d_weights = _product(v, _masked(d_mixed, own), 1, 1)
            mean = (weights * d_weights).sum(axis=0, keepdims=True)
            d_logits = (weights * (d_weights - mean) * size**-0.5).astype(q.dtype)
            d_v = jnp.where(own, _product(weights.astype(q.dtype), d_mixed, 1, 0), d_v)
            d_k = jnp.where(own, _product(d_logits, q, 1, 0), d_k)
            d_q = jnp.where(own, _product(d_logits, k, 0, 0), d_q)
        for part, found in zip(lanes, (d_q, d_k, d_v), strict=True):
            found_ref[:, part] = found.astype(found_ref.dtype)


def _tiles(shape: tuple[int, ...], size: int) -> Iterator[tuple[list[slice], list[Array]]]:
    """Yield for each tile where its channels of q, k and v are, and which of them each of its heads has."""
    tokens, width = shape
    wide = max(size, _LANES)
    channel = jax.lax.broadcasted_iota(jnp.int32, (tokens, wide), 1)
    heads = [(channel >= first) & (channel < first + size) for first in range(0, wide, size)]
    for first in range(0, width, wide):
        yield [slice(part * width + first, part * width + first + wide) for part in range(3)], heads


def _masked(x: Array, own: Array) -> Array:
    return jnp.where(own, x, jnp.zeros_like(x))


def _product(left: Array, right: Array, left_axis: int, right_axis: int) -> Array:
    """Sum products over an axis of each of two matrices, in float32."""
    contracted = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, contracted, preferred_element_type=jnp.float32)
