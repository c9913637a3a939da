"""Choose what a training step computes again in its backward pass, by the memory of the devices."""

import dataclasses
import logging

import jax
from jax.errors import JaxRuntimeError

from inti_jax.runs.compilation import peak_bytes
from inti_jax.runs.record import RunRecord
from inti_jax.training.train_step import lower_step

log = logging.getLogger("inti_jax")


def settle(record: RunRecord, mesh: jax.sharding.Mesh) -> RunRecord:
    """Return `record` with `model.remat` settled where it is "auto".

    Blocks are computed again only where the step does not fit into the memory of a device otherwise. To find
    out, the step is compiled. Devices that do not say how much memory they have, such as CPUs, are taken to
    have enough.
    """
    if record.config.model.remat != "auto":
        return record
    limit = _limit(mesh)
    if limit is None or _fits(with_remat(record, False), mesh, limit):
        return with_remat(record, False)
    log.info(
        'model.remat="auto": the step needs more than %.1f GiB, so blocks are computed again', limit / 2**30
    )
    return with_remat(record, True)


def with_remat(record: RunRecord, remat: bool) -> RunRecord:
    """Return `record` with another `model.remat`."""
    model = dataclasses.replace(record.config.model, remat=remat)
    return dataclasses.replace(record, config=dataclasses.replace(record.config, model=model))


def _limit(mesh: jax.sharding.Mesh) -> int | None:
    """Return the bytes that a program may use on each device of this host; None where devices do not say."""
    found = [device.memory_stats() or {} for device in mesh.local_devices]
    limits = [stats["bytes_limit"] for stats in found if "bytes_limit" in stats]
    return min(limits, default=None)


def _fits(record: RunRecord, mesh: jax.sharding.Mesh, limit: int) -> bool:
    try:
        peak = peak_bytes(lower_step(record, mesh)[1].compile())
    except JaxRuntimeError as error:
        if str(error).startswith("RESOURCE_EXHAUSTED"):
            return False
        raise
    return peak is None or peak <= limit
