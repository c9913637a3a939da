"""Fold linear adaptation modules into the backbone, for inference.

LoRA's updates (arXiv:2106.09685) and ZeroI2V's adapters (arXiv:2310.01324) are linear and next to a matrix,
which takes them up exactly. The folded parameters are those of `VideoModel(..., folded=True)`.
"""

import re
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from inti_jax.config import Model

# For each place, the matrix that takes up its module. The place is before, behind or beside that matrix.
_BEFORE = {"attn_in": "attn.qkv", "mlp_in": "mlp.fc"}
_BEHIND = {"attn_out": "attn.out", "mlp_out": "mlp.proj"}
_BESIDE = {
    "lora_query": "attn.qkv", "lora_key": "attn.qkv", "lora_value": "attn.qkv",
    "lora_out": "attn.out", "lora_fc": "mlp.fc", "lora_proj": "mlp.proj",
}  # fmt: skip
# Index into the packed kernel of query, key and value.
_PART = {"lora_query": 0, "lora_key": 1, "lora_value": 2}


def fold(config: Model, params: Mapping[str, Array]) -> dict[str, Array]:
    """Fold the modules in `params`, by path, into the tower's matrices.

    Returns the parameters of the folded model: the modules that fold are gone. The kernels and biases that
    took them up are float32, whatever they were.
    """
    result = dict(params)
    if config.adaptation == "lora":
        for prefix, block, place in _places(params, _BESIDE):
            _add_update(result, f"tower.blocks.{block}.{_BESIDE[place]}", prefix, place, config)
    elif config.adaptation == "zero_i2v":
        for prefix, block, place in _places(params, {**_BEFORE, **_BEHIND}):
            matrix = f"tower.blocks.{block}.{(_BEFORE | _BEHIND)[place]}"
            _compose(result, matrix, prefix, config.zero_i2v.scale, first=place in _BEFORE)
    return result


def _places(params: Mapping[str, Array], places: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Find the modules at `places`: the path, the block's number and the place of each."""
    found = (re.fullmatch(r"(adapters\.(\d+)\.(\w+))\.down\.kernel", path) for path in params)
    return [(match[1], match[2], match[3]) for match in found if match and match[3] in places]


def _add_update(params: dict[str, Array], matrix: str, prefix: str, place: str, config: Model) -> None:
    """Add the LoRA update at `prefix` to `matrix`."""
    down, up = params.pop(f"{prefix}.down.kernel"), params.pop(f"{prefix}.up.kernel")
    update = config.lora.alpha / config.lora.rank * _product(down, up)
    kernel = params[f"{matrix}.kernel"].astype(jnp.float32)
    if place in _PART:
        part = _PART[place]
        kernel = kernel.at[:, part].add(update.reshape(kernel[:, part].shape))
    else:
        kernel = kernel + update.reshape(kernel.shape)
    params[f"{matrix}.kernel"] = kernel


def _compose(params: dict[str, Array], matrix: str, prefix: str, scale: float, *, first: bool) -> None:
    """Fold the linear adapter at `prefix`, before `matrix` if `first` or else behind, into the matrix.

    The adapter computes x + scale * ((x down + b) up + c), which is x A + a.
    """
    down, down_bias, up, up_bias = (
        params.pop(f"{prefix}.{name}.{part}") for name in ("down", "up") for part in ("kernel", "bias")
    )
    slope = jnp.eye(down.shape[0]) + scale * _product(down, up)
    shift = scale * (_product(down_bias[None], up)[0] + up_bias)
    kernel, bias = (params[f"{matrix}.{part}"].astype(jnp.float32) for part in ("kernel", "bias"))
    # The tower's kernels have dimensions for the heads; here they are flat, [in, out].
    flat = kernel.reshape(slope.shape[0], -1) if first else kernel.reshape(-1, slope.shape[0])
    if first:
        folded, folded_bias = _product(slope, flat), bias.reshape(-1) + _product(shift[None], flat)[0]
    else:
        folded, folded_bias = _product(flat, slope), _product(bias[None], slope)[0] + shift
    params[f"{matrix}.kernel"] = folded.reshape(kernel.shape)
    params[f"{matrix}.bias"] = folded_bias.reshape(bias.shape)


def _product(a: Float[Array, "M K"], b: Float[Array, "K N"]) -> Float[Array, "M N"]:
    return jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32), precision="highest")
