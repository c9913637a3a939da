"""The device mesh, and where each parameter lives on it.

Mesh axes: `data` (the batch), `fsdp` (the batch, and a slice of every large parameter) and `tensor`
(heads and MLP channels, as in Megatron-LM, arXiv:1909.08053).
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from inti_jax import config
from inti_jax.config import ConfigError
from inti_jax.distributed import backend

R = TypeVar("R")

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
    # Narrow beside what they are added to: with `tensor` each device computes all of them, from inputs that
    # every device of a `tensor` group has anyway, and no sum over the group is needed after them.
    "adapters": ((r"\d+\..*", None),),
    "temporal": ((r"embedding", None),),
    "compressors": ((r"\d+\..*", None),),
    "head": ((r"((projection|classes)\.)?kernel|bias|logit_scale", None),),
}


def make_mesh(sizes: config.Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Make the mesh over `devices`, by default all.

    Raises ConfigError where the sizes do not multiply up, UserError where JAX has no devices to use.
    """
    if devices is None:
        backend.start()
        devices = jax.devices()
    shape = [sizes.data, sizes.fsdp, sizes.tensor]
    given = math.prod(size for size in shape if size != -1)
    if len(devices) % given or (-1 not in shape and given != len(devices)):
        raise ConfigError(
            f"config: `mesh` is data={sizes.data}, fsdp={sizes.fsdp}, tensor={sizes.tensor}, "
            f"but there are {len(devices)} devices: the sizes should multiply to {len(devices)}"
        )
    shape = [len(devices) // given if size == -1 else size for size in shape]
    return jax.sharding.Mesh(_arranged(shape, devices), AXES, axis_types=(AxisType.Auto,) * 3)


def one_device_mesh() -> jax.sharding.Mesh:
    """Make the mesh of one device of this process. Raises UserError where JAX has no devices to use."""
    backend.start()
    return make_mesh(config.Mesh(), jax.local_devices()[:1])


def _arranged(shape: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """The devices of a mesh of `shape`: neighbours along its axes are near each other, as far as may be.

    Several slices of TPUs, between which there is but the data centre's network, are put along `data`, or
    else along `fsdp`. Raises ConfigError where neither is a multiple of their number.
    """
    if devices[0].platform != "tpu":
        return mesh_utils.create_device_mesh(shape, devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    along = next((axis for axis in (0, 1) if shape[axis] % slices == 0), None)
    if along is None:
        raise ConfigError(
            f"config: `mesh` is {dict(zip(AXES, shape, strict=True))}, on {slices} slices of devices: `data` "
            f"or `fsdp` should be a multiple of {slices}"
        )
    between = [slices if axis == along else 1 for axis in range(3)]
    within = [size // count for size, count in zip(shape, between, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)


def check_batch(size: int, key: str, mesh: jax.sharding.Mesh) -> None:
    """Raises ConfigError where `size` videos cannot be split evenly over the batch axes."""
    shards = _batch_shards(mesh)
    if size % shards:
        raise ConfigError(
            f"config: `{key}` gives {size} videos at a time, but the mesh splits them over {shards} "
            f"devices: it should be a multiple of {shards}"
        )


def _batch_shards(mesh: jax.sharding.Mesh) -> int:
    return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The first dimension over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


@functools.lru_cache(maxsize=4)  # asked for each batch, and a mesh does not change
def host_shards(mesh: jax.sharding.Mesh) -> tuple[int, ...]:
    """Which of the parts that the mesh cuts a batch into are on devices of this host.

    Where `tensor` spans hosts, several have the same.
    """
    processes = np.vectorize(lambda device: device.process_index)(mesh.devices)
    return tuple(shards_on(jax.process_index(), processes))


def shards_on(process: int, processes: np.ndarray) -> list[int]:
    """Which parts of a batch are on `process`, where `processes` are those of a mesh's devices."""
    parts = processes.reshape(-1, processes.shape[-1])  # [data * fsdp, tensor]
    return [part for part, there in enumerate(parts) if process in there]


def host_rows(mesh: jax.sharding.Mesh, size: int) -> list[int]:
    """The rows of a batch of `size` that this host loads, in order."""
    part = size // _batch_shards(mesh)
    return [shard * part + row for shard in host_shards(mesh) for row in range(part)]


def over_batch(x: Any) -> Any:
    """`x`, whose first dimension counts videos or frames, kept over `data` and `fsdp` inside a jitted step.

    Where arrays inside a step live, the compiler finds out from state and batch; but without this it may cut
    activations as parameters are cut, and gather them. Does nothing where no mesh is in use; see `using`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))


def using(mesh: jax.sharding.Mesh, function: Callable[..., R]) -> Callable[..., R]:
    """`function`, traced with `mesh` in use."""

    @functools.wraps(function)
    def traced(*arguments: Any) -> R:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced


def compiler_options(mesh: jax.sharding.Mesh) -> dict[str, str]:
    """What is set of the compiler for programs on `mesh`."""
    if mesh.devices.flat[0].platform != "tpu":
        return {}
    # Parameters in slices are gathered, then used. By default a product with one is cut into as many parts as
    # there are slices, whose sums go through memory each time: for matrices of our sizes twice the traffic.
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def place_batch(batch: Mapping[str, Any], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """The rows `host_rows` onto this host's devices, as its part of the global batch."""
    sharding, shards = batch_sharding(mesh), host_shards(mesh)

    def place(rows: Any) -> jax.Array:
        part = len(rows) // len(shards)

        def rows_at(index: tuple[slice, ...] | None) -> Any:
            assert index is not None
            at = shards.index((index[0].start or 0) // part) * part
            return rows[at : at + part]

        return jax.make_array_from_callback((part * _batch_shards(mesh), *rows.shape[1:]), sharding, rows_at)

    return {key: place(rows) for key, rows in batch.items()}


def parameter_shardings(
    shapes: Mapping[str, jax.ShapeDtypeStruct], mesh: jax.sharding.Mesh
) -> dict[str, NamedSharding]:
    """Where each parameter lives: `tensor` by the rules, `fsdp` on the widest dimension it divides.

    Raises ConfigError where `tensor` does not divide what it splits.
    """
    unused = {(module, rule) for module in {_module(path) for path in shapes} for rule in _RULES[module]}
    result = {}
    for path, shape in shapes.items():
        module = _module(path)
        rule = next((r for r in _RULES[module] if re.fullmatch(rf"{module}\.(?:{r[0]})", path)), None)
        if rule is None:
            raise ValueError(f"no sharding rule for parameter {path}")
        unused.discard((module, rule))
        tensor = mesh.shape["tensor"]
        if rule[1] is not None and shape.shape[rule[1]] % tensor:
            raise ConfigError(
                f"config: `mesh.tensor` comes to {tensor}: it should divide the {shape.shape[rule[1]]} "
                f"heads or channels of {path}"
            )
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
