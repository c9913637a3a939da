"""The device mesh, and where each parameter lives on it.

Mesh axes: `data` (the batch), `fsdp` (the batch, and a slice of every large parameter) and `tensor`
(heads and MLP channels, as in Megatron-LM, arXiv:1909.08053).
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from inti_jax import config
from inti_jax.config import ConfigError

AXES = ("data", "fsdp", "tensor")

# Leaves smaller than this many elements are copied to every device: a slice would not pay its gather.
_SMALLEST_SLICED = 2**12

# For each top-level module, rules of (parameter path, the dimension that `tensor` splits). The first
# match counts; a parameter without a match, or a rule that matches nothing, is an error.
_RULES: dict[str, Sequence[tuple[str, int | None]]] = {
    "tower": (
        (r"blocks\.\d+\.attn\.qkv\.(kernel|bias)", -2),
        (r"blocks\.\d+\.attn\.out\.kernel", -3),
        (r"blocks\.\d+\.mlp\.fc\.(kernel|bias)", -1),
        (r"blocks\.\d+\.mlp\.proj\.kernel", -2),
        (r"blocks\.\d+\.(attn\.out|mlp\.proj)\.bias", None),
        (r"(blocks\.\d+\.)?ln_\w+\.(scale|bias)", None),
        (r"patch_embed\.kernel", None),
        (r"(class|positional)_embedding", None),
    ),
    "adapters": ((r"\d+\..*", None),),
    "temporal": ((r"embedding", None),),
    "compressors": ((r"\d+\..*", None),),
    "head": ((r"((projection|classes)\.)?kernel|bias|logit_scale", None),),
}


def make_mesh(sizes: config.Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh over `devices` (default: all). Raises ConfigError where the sizes do not multiply up."""
    devices = jax.devices() if devices is None else devices
    shape = [sizes.data, sizes.fsdp, sizes.tensor]
    given = math.prod(size for size in shape if size != -1)
    if len(devices) % given or (-1 not in shape and given != len(devices)):
        raise ConfigError(
            f"config: `mesh` is data={sizes.data}, fsdp={sizes.fsdp}, tensor={sizes.tensor}, "
            f"but there are {len(devices)} devices: the sizes should multiply to {len(devices)}"
        )
    shape = [len(devices) // given if size == -1 else size for size in shape]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def check_batch(size: int, key: str, mesh: jax.sharding.Mesh) -> None:
    """Raises ConfigError where `size` videos cannot be split evenly over the batch axes."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if size % shards:
        raise ConfigError(
            f"config: `{key}` gives {size} videos at a time, but the mesh splits them over {shards} "
            f"devices: it should be a multiple of {shards}"
        )


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The first dimension over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def place_batch(batch: Mapping[str, Any], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """This host's rows onto its devices, as its part of the global batch."""
    sharding = batch_sharding(mesh)
    return {key: jax.make_array_from_process_local_data(sharding, rows) for key, rows in batch.items()}


def parameter_shardings(
    shapes: Mapping[str, jax.ShapeDtypeStruct], mesh: jax.sharding.Mesh
) -> dict[str, NamedSharding]:
    """Where each parameter lives: `tensor` by the rules, `fsdp` on the widest dimension it divides."""
    unused = {(module, rule) for module in {_module(path) for path in shapes} for rule in _RULES[module]}
    result = {}
    for path, shape in shapes.items():
        module = _module(path)
        rule = next((r for r in _RULES[module] if re.fullmatch(rf"{module}\.(?:{r[0]})", path)), None)
        if rule is None:
            raise ValueError(f"no sharding rule for parameter {path}")
        unused.discard((module, rule))
        result[path] = NamedSharding(mesh, _spec(shape.shape, rule[1], mesh))
    if unused:
        raise ValueError(f"sharding rules that match no parameter: {sorted(map(str, unused))}")
    return result


def like_parameters(
    transform: optax.GradientTransformation,
    opt_state: Any,
    shardings: Mapping[str, NamedSharding],
    mesh: jax.sharding.Mesh,
) -> Any:
    """Shardings for an optimizer state: each moment lives where its parameter does."""
    return optax.tree_map_params(
        transform,
        lambda _, sharding: sharding,
        opt_state,
        dict(shardings),
        transform_non_params=lambda _: replicated(mesh),
    )


def _module(path: str) -> str:
    module = path.partition(".")[0]
    if module not in _RULES:
        raise ValueError(f"no sharding rules for module {module} (parameter {path})")
    return module


def _spec(shape: tuple[int, ...], tensor_dim: int | None, mesh: jax.sharding.Mesh) -> PartitionSpec:
    spec: list[str | None] = [None] * len(shape)
    if tensor_dim is not None:
        spec[tensor_dim] = "tensor"
    size = mesh.shape["fsdp"]
    free = [dim for dim, axis in enumerate(spec) if axis is None and shape[dim] % size == 0]
    if free and math.prod(shape) >= _SMALLEST_SLICED:
        spec[max(free, key=lambda dim: shape[dim])] = "fsdp"
    return PartitionSpec(*spec)
