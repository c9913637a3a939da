"""Compile the training step ahead of time for a TPU topology that is not attached, and read its cost.

libtpu compiles for any slice of TPUs on a host without one. The step can also be compiled for this host's own
devices. Nothing runs.
"""

import dataclasses
import importlib.util
import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from inti_jax.errors import UsageError
from inti_jax.host.chips import TPU_FAMILIES, Chip, chip_of

if TYPE_CHECKING:
    import jax

    from inti_jax.config import Config
    from inti_jax.cost.hlo import Collective, Cost
    from inti_jax.models.video import VideoModel

_EXAMPLES = "v5e:4x4 (16 chips), v5e:16x16*2 (two slices), v6e:2x4, v4:2x2x4, v5p:4x4x8"
# For each family, the dimensions of a slice and the chips of the largest slice.
_SHAPES = {"v4": (3, 4096), "v5e": (2, 256), "v5p": (3, 6144), "v6e": (2, 256)}
# A v4 chip has two cores. With this setting they are one device, which is how JAX runs on v4.
_SETTINGS = {"v4": {"chip_config_name": "megacore"}}


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All exchanges of one kind in a step.

    `bytes` counts the whole arrays gathered, reduced or sent; between slices, a device's part of them. `sent`
    counts what a device sends in rings: of n devices, (n - 1) / n of the bytes, and twice that to reduce them
    for all.
    """

    kind: str
    count: int
    bytes: int
    sent: float
    between: str  # "chips" or "slices"


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Lower bounds on the seconds of a step, from the chip's peak rates. `binds` names the largest.

    `network` is what slices exchange; None where they do and the rate is not known.
    """

    compute: float
    hbm: float
    interconnect: float
    network: float | None
    binds: str


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One compiled training step. Figures are for one device.

    FLOPs are XLA's, two for a multiply-accumulate, forward and backward. Bytes are those that instructions
    read and write, in HBM and in the chip's own memory; on TPUs `hbm_bytes_per_device` are those in HBM.
    These figures are None where the compiler finds too little memory. A step that does not fit has
    `remedies`, the cheapest first.
    """

    topology: str
    devices: int
    mesh: dict[str, int]
    remat: bool  # whether blocks are computed again in the backward pass: `model.remat`
    seconds: float  # taken by compiling
    flops_per_device: float | None
    bytes_per_device: float | None
    hbm_bytes_per_device: float | None
    arithmetic_intensity: float | None  # FLOPs a byte
    state_gib: float  # parameters, the average of those that train, and optimizer state
    peak_hbm_gib: float | None
    hbm_gib: float | None  # None where the chip is not known
    fits: bool
    collectives: list[Traffic]
    roofline: Roofline | None
    remedies: list[str]


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for."""

    name: str
    devices: "Sequence[jax.Device]"


def prepare_environment() -> None:
    """Set the environment for compiling ahead of time. Call it before JAX is imported.

    JAX then touches no device of this host, and libtpu does not query a metadata server for the machine's
    topology.
    """
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        # libtpu locks out other processes to protect the chips, but compiling does not use them.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }


def tpu_target(name: str) -> Target:
    """Return the chips of `FAMILY:AxB` or `FAMILY:AxBxC`, and with `*N` those of N such slices.

    Raises UsageError where there is no such topology, and where libtpu is not installed.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?:\*(\d+))?", name)
    if match is None or match[1] not in TPU_FAMILIES:
        raise UsageError(f"--topology {name}: there is no such topology; valid are for example {_EXAMPLES}")
    family, slices = match[1], int(match[3] or 1)
    shape = [int(size) for size in match[2].split("x")]
    dimensions, largest = _SHAPES[family]
    if len(shape) != dimensions or not 0 < math.prod(shape) <= largest or slices < 1:
        raise UsageError(
            f"--topology {name}: a slice of {family} has {dimensions} dimensions and at most {largest} "
            f"chips; valid are for example {_EXAMPLES}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError(
            f"--topology {name}: the TPU's compiler is not installed: pip install 'inti_jax[tpu]'"
        )
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    settings: dict[str, Any] = dict(_SETTINGS.get(family, {}))
    if slices > 1:
        settings["num_slices"] = slices
    if math.prod(shape) == 1:
        settings["chips_per_host_bounds"] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=f"{family}:{match[2]}", **settings)
    except JaxRuntimeError as error:
        reason = str(error).splitlines()[0].partition(": ")[2]
        raise UsageError(f"--topology {name}: {reason}; valid are for example {_EXAMPLES}") from None
    return Target(name, found.devices)


def local_target(platform: str) -> Target:
    """Return this host's devices of a platform such as `cuda`. Raises UsageError where there are none."""
    import jax

    try:
        devices = jax.devices(platform)
    except RuntimeError:
        raise UsageError(
            f"--platform {platform}: JAX finds no such device; on a host that has one, pip install "
            f"'inti_jax[{platform}]', or compile for TPUs with --topology"
        ) from None
    return Target(f"{platform}:{len(devices)}", devices)


def compile_step(
    config: "Config",
    model: "VideoModel",
    target: Target,
    lower: "Callable[[jax.sharding.Mesh], tuple[Any, jax.stages.Lowered]]",
) -> Compiled:
    """Compile the training step of `config`, whose model is `model`, for `target`.

    `lower` takes a mesh and returns the shapes of the training state, with shardings, and the step lowered
    for the mesh. Raises ConfigError where the mesh does not suit the devices.
    """
    from jax.errors import JaxRuntimeError

    from inti_jax.cost import hlo
    from inti_jax.distributed import sharding
    from inti_jax.runs.compilation import peak_bytes

    mesh = sharding.make_mesh(config.mesh, target.devices)
    start = time.perf_counter()
    shapes, lowered = lower(mesh)
    chip = chip_of(target.devices[0])
    state_bytes = _bytes_of(shapes)
    try:
        compiled: Any = lowered.compile()
    except JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        cost, hbm_bytes, peak = None, None, _asked(str(error))
        collectives: list[Collective] = []
    else:
        program = hlo.Program(compiled.as_text())
        counted = compiled.cost_analysis()
        cost = program.cost(hlo.Cost(counted["flops"], counted["bytes accessed"]))
        hbm_bytes = program.hbm_bytes() if target.devices[0].platform == "tpu" else None
        collectives = program.collectives()
        peak = peak_bytes(compiled)
    seconds = time.perf_counter() - start

    hbm = None if chip is None else float(chip.memory_gib)
    fits = cost is not None and (hbm is None or peak is None or peak <= hbm * 2**30)
    return Compiled(
        topology=target.name,
        devices=mesh.size,
        mesh={axis: int(size) for axis, size in mesh.shape.items()},
        remat=config.model.remat is True,
        seconds=seconds,
        flops_per_device=None if cost is None else cost.flops,
        bytes_per_device=None if cost is None else cost.bytes,
        hbm_bytes_per_device=hbm_bytes,
        arithmetic_intensity=None if cost is None else cost.flops / cost.bytes,
        state_gib=state_bytes / 2**30,
        peak_hbm_gib=None if peak is None else peak / 2**30,
        hbm_gib=hbm,
        fits=fits,
        collectives=_by_kind(collectives),
        roofline=None if cost is None or chip is None else _roofline(cost, hbm_bytes, collectives, chip),
        remedies=[] if fits else _remedies(config, model, mesh, shapes, hbm),
    )


def _roofline(cost: "Cost", hbm_bytes: float | None, collectives: "list[Collective]", chip: Chip) -> Roofline:
    # A GPU's programs do not say where arrays are: then all bytes count, which a cache may serve.
    moved = cost.bytes if hbm_bytes is None else hbm_bytes
    sent = {"chips": 0.0, "slices": 0.0}
    for one in collectives:
        sent[one.between] += one.count * one.sent
    network = 0.0 if not sent["slices"] else None
    if sent["slices"] and chip.network_bandwidth is not None:
        network = sent["slices"] / chip.network_bandwidth
    seconds = {
        "compute": cost.flops / chip.flops,
        "hbm": moved / chip.memory_bandwidth,
        "interconnect": sent["chips"] / chip.link_bandwidth,
    }
    known = seconds if network is None else seconds | {"network": network}
    return Roofline(**seconds, network=network, binds=max(known, key=lambda name: known[name]))


def _by_kind(collectives: "list[Collective]") -> list[Traffic]:
    alike: dict[tuple[str, str], list[Collective]] = defaultdict(list)
    for one in collectives:
        alike[one.between, one.kind].append(one)
    found = [
        Traffic(
            kind,
            sum(one.count for one in group),
            sum(one.count * one.bytes for one in group),
            sum(one.count * one.sent for one in group),
            between,
        )
        for (between, kind), group in alike.items()
    ]
    return sorted(found, key=lambda traffic: -traffic.bytes)


def _asked(message: str) -> float | None:
    """Parse the bytes that a program would need from the compiler's message; None where it has none."""
    match = re.search(r"Used ([\d.]+)([KMGT]) of|required for HLO temporaries \(([\d.]+)([KMGT])\)", message)
    if match is None:
        return None
    number, unit = [part for part in match.groups() if part]
    return float(number) * 2 ** (10 * (1 + "KMGT".index(unit)))


def _bytes_of(shapes: Any) -> int:
    """Count the bytes that one device holds of sharded arrays."""
    import jax

    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes)
    )


def _remedies(
    config: "Config", model: "VideoModel", mesh: "jax.sharding.Mesh", shapes: Any, hbm: float | None
) -> list[str]:
    """List the settings that make a step smaller, with the saving on a device, the least slowdown first."""
    import jax.numpy as jnp

    from inti_jax.cost import activations

    saved = activations.saved(model, config.model, config.data.num_frames)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    views = config.train.global_batch // config.train.accumulate // shards
    kept = views * (saved.embedding + sum(saved.blocks) + saved.head) / mesh.shape["tensor"]
    held = _bytes_of(shapes)
    least = 0.005 * (held + kept)  # a smaller saving is not worth a line
    found = []
    frozen = _bytes_of(shapes.frozen)
    if config.model.frozen_dtype == "float32" and frozen / 2 > least:
        found.append(f"model.frozen_dtype=bfloat16 saves {frozen / 2 / 2**30:.1f} GiB of parameters")
    if config.train.dtype == "float32":
        found.append(f"train.dtype=bfloat16 saves {kept / 2 / 2**30:.1f} GiB of activations")
    rest = held * (1 - 1 / mesh.shape["data"])
    if rest > least:
        found.append(
            f"mesh.data=1 with mesh.fsdp=-1 saves {rest / 2**30:.1f} GiB of parameters and optimizer state"
        )
    room = None if hbm is None else 0.8 * hbm * 2**30 - held
    parts = [parts for parts in range(2, views + 1) if views % parts == 0]
    if parts:
        chosen = next((n for n in parts if room is not None and kept / n <= room), parts[-1])
        found.append(
            f"train.accumulate={config.train.accumulate * chosen} saves "
            f"{kept * (1 - 1 / chosen) / 2**30:.1f} GiB of activations, for the same update"
        )
    if not config.model.remat:
        tokens = sum(cost.frames * cost.tokens for cost in model.block_costs(config.data.num_frames))
        inputs = views * tokens * model.size.width * jnp.dtype(model.dtype).itemsize
        found.append(
            f"model.remat=True saves up to {max(kept - inputs, 0) / 2**30:.1f} GiB of activations, at the "
            "cost of a third more time"
        )
    found.append("a smaller train.global_batch, or more devices")
    return found
