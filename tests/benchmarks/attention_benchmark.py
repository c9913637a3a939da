"""Print what one attention layer of B/16 accesses on TPU, by the implementation, on a host without a TPU.

    python -m tests.benchmarks.attention_benchmark [--kinds xla,splash,flash,ours] [--topology v5e:1x1]

The layer is the two matrices with attention between them, forward and backward, on 32 frames of 197 tokens in
bfloat16. Bytes are of operands and results, of kernels as of all else. Splash and flash attention are JAX's
own, with heads apart and tokens padded to a multiple of 128.
"""

import argparse
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental.pallas.ops.tpu import flash_attention as flash_kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_masks
from jaxtyping import Array

from inti_jax.cost import hlo, topology
from inti_jax.models import fused_attention

FRAMES, TOKENS, HEADS, SIZE = 32, 197, 12, 64
WIDTH, PADDED = HEADS * SIZE, 256


def xla(qkv: Array) -> Array:
    parts = jnp.unstack(rearrange(qkv, "b n (p a h) -> p b n a h", p=3, a=HEADS))
    mixed = jax.checkpoint(jax.nn.dot_product_attention)(*parts)
    return rearrange(mixed, "b n a h -> b n (a h)")


def splash(qkv: Array) -> Array:
    sizes = splash_kernels.BlockSizes(*[PADDED] * 6, use_fused_bwd_kernel=True)
    mask = splash_masks.MultiHeadMask([splash_masks.FullMask((PADDED, PADDED))] * HEADS)
    attend = splash_kernels.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=sizes)
    q, k, v = padded(qkv)
    ids = splash_kernels.SegmentIds(segments(), segments())
    return joined(jax.vmap(attend)(q * SIZE**-0.5, k, v, segment_ids=ids))


def flash(qkv: Array) -> Array:
    sizes = flash_kernels.BlockSizes(PADDED, PADDED, PADDED, 1, *[PADDED] * 7)
    ids = flash_kernels.SegmentIds(segments(), segments())
    attend = functools.partial(flash_kernels.flash_attention, sm_scale=SIZE**-0.5, block_sizes=sizes)
    return joined(attend(*padded(qkv), segment_ids=ids))


def ours(qkv: Array) -> Array:
    return fused_attention.attend(qkv, SIZE)


def padded(qkv: Array) -> Array:
    by_head = rearrange(qkv, "b n (p a h) -> p b a n h", p=3, a=HEADS)
    return jnp.pad(by_head, [(0, 0)] * 3 + [(0, PADDED - TOKENS), (0, 0)])


def segments() -> Array:
    """Numbers by which padding and tokens do not see each other."""
    return jnp.broadcast_to((jnp.arange(PADDED) >= TOKENS).astype(jnp.int32)[None], (FRAMES, PADDED))


def joined(mixed: Array) -> Array:
    return rearrange(mixed[:, :, :TOKENS], "b a n h -> b n (a h)")


def loss(attend: Callable[[Array], Array], matrices: tuple[Array, Array], x: Array) -> Array:
    first, last = (matrix.astype(x.dtype) for matrix in matrices)
    return ((x + attend(x @ first[None]) @ last[None]).astype(jnp.float32) ** 2).sum()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", default="xla,splash,flash,ours")
    parser.add_argument("--topology", default="v5e:1x1")
    arguments = parser.parse_args()
    topology.prepare_environment()
    jax.config.update("jax_platforms", "cpu")
    device = topology.tpu_target(arguments.topology).devices[0]
    array = functools.partial(jax.ShapeDtypeStruct, sharding=jax.sharding.SingleDeviceSharding(device))
    matrices = array((WIDTH, 3 * WIDTH), jnp.float32), array((WIDTH, WIDTH), jnp.float32)
    x = array((FRAMES, TOKENS, WIDTH), jnp.bfloat16)
    print("| attention | MB accessed | of which in HBM | by kernels |\n|---|---|---|---|")
    for kind in arguments.kinds.split(","):
        step = jax.jit(jax.grad(functools.partial(loss, globals()[kind]), argnums=(0, 1)))
        found = hlo.Program(step.lower(matrices, x).compile().as_text()).accesses()
        rows = [sum(one.count * getattr(one, name) for one in found) / 1e6 for name in ("bytes", "hbm")]
        rows.append(sum(one.count * one.bytes for one in found if one.opcode == "custom-call") / 1e6)
        print(f"| {kind} | " + " | ".join(f"{size:.0f}" for size in rows) + " |", flush=True)


if __name__ == "__main__":
    main()
