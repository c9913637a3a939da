"""Make the device mesh, and shard parameters and batches over it.

Mesh axes: `data` (the batch), `fsdp` (the batch, and a slice of every large parameter) and `tensor` (heads
and MLP channels, as in Megatron-LM, arXiv:1909.08053).
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from inti_jax import config
from inti_jax.config import ConfigError
from inti_jax.distributed import backend

R = TypeVar("R")

CompilerOptions = dict[str, str | bool]

AXES = ("data", "fsdp", "tensor")

# Leaves with fewer elements are copied to every device: slicing them would not pay for the gather.
_SMALLEST_SLICED = 2**12

# For each top-level module, rules of (pattern of parameter paths, the dimension that `tensor` splits). The
# first match counts. A parameter without a match is an error, and so is a rule that matches nothing.
_RULES: dict[str, Sequence[tuple[str, int | None]]] = {
    "tower": (
        (r"(blocks\.\d+|pooling)\.attn\.qkv\.(kernel|bias)", -2),
        (r"(blocks\.\d+|pooling)\.attn\.out\.kernel", -3),
        (r"(blocks\.\d+|pooling)\.mlp\.fc\.(kernel|bias)", -1),
        (r"(blocks\.\d+|pooling)\.mlp\.proj\.kernel", -2),
        (r"(blocks\.\d+|pooling)\.(attn\.out|mlp\.proj)\.bias", None),
        (r"((blocks\.\d+|pooling)\.)?(ln|ls)_\w+\.(scale|bias)", None),
        (r"patch_embed\.(kernel|bias)", None),
        (r"(class|positional)_embedding|registers|pooling\.probe", None),
    ),
    # Adapters are narrow beside the layers they are added to. With `tensor` each device computes all of them,
    # from inputs that every device of a `tensor` group has anyway, so no sum over the group has to follow.
    "adapters": ((r"\d+\..*", None),),
    "temporal": ((r"embedding", None),),
    "compressors": ((r"\d+\..*", None),),
    "head": ((r"((projection|classes)\.)?kernel|bias|logit_scale", None),),
}


def make_mesh(sizes: config.Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Make the mesh over `devices`, by default all of them.

    Raises ConfigError where the sizes do not multiply up, UserError where JAX has no devices to use.
    """
    if devices is None:
        backend.start()
        devices = jax.devices()
    shape = [sizes.data, sizes.fsdp, sizes.tensor]
    given = math.prod(size for size in shape if size != -1)
    if len(devices) % given or (-1 not in shape and given != len(devices)):
        raise ConfigError(
            f"config: `mesh` is data={sizes.data}, fsdp={sizes.fsdp}, tensor={sizes.tensor}, but there are "
            f"{len(devices)} devices: the product of the sizes should be {len(devices)}"
        )
    shape = [len(devices) // given if size == -1 else size for size in shape]
    return jax.sharding.Mesh(_arranged(shape, devices), AXES, axis_types=(AxisType.Auto,) * 3)


def one_device_mesh() -> jax.sharding.Mesh:
    """Make the mesh of one device of this process. Raises UserError where JAX has no devices to use."""
    backend.start()
    return make_mesh(config.Mesh(), jax.local_devices()[:1])


def _arranged(shape: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """Arrange devices in a mesh of `shape`, with neighbours along its axes as near each other as possible.

    Several slices of TPUs are connected only by the data centre's network. They are put along `data`, or else
    along `fsdp`. Raises ConfigError where neither is a multiple of their number.
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
    """Check that `size` videos split evenly over the batch axes. Raises ConfigError where they do not."""
    shards = batch_shards(mesh)
    if size % shards:
        raise ConfigError(
            f"config: `{key}` gives {size} videos at a time, but the mesh splits them over {shards} "
            f"devices: it should be a multiple of {shards}"
        )


def batch_shards(mesh: jax.sharding.Mesh) -> int:
    """Return the number of parts that the batch axes of the mesh split a batch into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Return the sharding that copies an array to every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Return the sharding that splits the first dimension over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


@functools.lru_cache(maxsize=4)  # called for each batch, and a mesh does not change
def host_shards(mesh: jax.sharding.Mesh) -> tuple[int, ...]:
    """Return the indices of the batch shards that are on devices of this host.

    Where `tensor` spans hosts, several hosts have the same shards.
    """
    processes = np.vectorize(lambda device: device.process_index)(mesh.devices)
    return tuple(shards_on(jax.process_index(), processes))


def shards_on(process: int, processes: np.ndarray) -> list[int]:
    """Return the indices of the batch shards on `process`, from the process of each device of a mesh."""
    parts = processes.reshape(-1, processes.shape[-1])  # [data * fsdp, tensor]
    return [part for part, there in enumerate(parts) if process in there]


def host_rows(mesh: jax.sharding.Mesh, size: int) -> list[int]:
    """Return the rows of a batch of `size` that this host loads, in order."""
    part = size // batch_shards(mesh)
    return [shard * part + row for shard in host_shards(mesh) for row in range(part)]


def over_batch(x: Any) -> Any:
    """Keep `x` sharded over `data` and `fsdp` by its first dimension, inside a jitted step.

    The first dimension counts videos or frames. The compiler derives the shardings inside a step from those
    of state and batch. Without this constraint it may shard activations as parameters are sharded, and gather
    them. Does nothing where no mesh is in use; see `using`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))


def platform() -> str | None:
    """Return the platform of the mesh in use, such as `tpu`; None where no mesh is in use."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return None if device is None else device.platform


def axis_size(axis: str) -> int:
    """Return the size of an axis of the mesh in use; 1 where no mesh is in use."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[axis]


def using(mesh: jax.sharding.Mesh, function: Callable[..., R]) -> Callable[..., R]:
    """Wrap `function` so that it is traced with `mesh` in use."""

    @functools.wraps(function)
    def traced(*arguments: Any) -> R:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced


def compiler_options(mesh: jax.sharding.Mesh) -> CompilerOptions:
    """Return the compiler options for programs on `mesh`."""
    if mesh.devices.flat[0].platform != "tpu":
        return {}
    # Gather sliced parameters before they are used. By default XLA cuts a product with one into as many parts
    # as there are slices, and each partial sum goes through memory: twice the traffic for our matrix sizes.
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def place_batch(batch: Mapping[str, Any], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Place the rows `host_rows` on this host's devices, as its part of the global batch."""
    parts, own_parts = batch_shards(mesh), len(host_shards(mesh))
    # Given, because JAX cannot infer them where hosts share some of their rows.
    shapes = {key: (len(rows) // own_parts * parts, *rows.shape[1:]) for key, rows in batch.items()}
    return jax.make_array_from_process_local_data(batch_sharding(mesh), dict(batch), shapes)


def parameter_shardings(
    shapes: Mapping[str, jax.ShapeDtypeStruct], mesh: jax.sharding.Mesh
) -> dict[str, NamedSharding]:
    """Shard each parameter: `tensor` by the rules, `fsdp` on the widest dimension that it divides.

    Raises ConfigError where `tensor` does not divide the dimension that it splits. Raises ValueError for a
    parameter without a rule and a rule without a parameter.
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
                f"config: `mesh.tensor` is {tensor}: it should divide the {shape.shape[rule[1]]} heads or "
                f"channels of {path}"
            )
        result[path] = NamedSharding(mesh, _spec(shape.shape, rule[1], mesh))
    if unused:
        raise ValueError(f"these sharding rules match no parameter: {sorted(map(str, unused))}")
    return result


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
