"""Measure the memory that a run holds on its host and on its devices."""

import multiprocessing
import os
from pathlib import Path

import jax


def resident_bytes() -> int:
    """Sum the resident memory of this process and its worker processes. Shared memory counts for each."""
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    return sum(_resident_pages(process) for process in processes) * os.sysconf("SC_PAGE_SIZE")


def device_bytes() -> dict[str, int]:
    """Measure the devices' memory: `hbm_bytes` in use now and `hbm_peak_bytes` since the start.

    Each is the highest of this process's devices. The result is empty where devices do not report it, as CPUs
    do not.
    """
    stats = [found for device in jax.local_devices() if (found := device.memory_stats())]
    if not stats:
        return {}
    return {
        "hbm_bytes": max(found["bytes_in_use"] for found in stats),
        "hbm_peak_bytes": max(found["peak_bytes_in_use"] for found in stats),
    }


def _resident_pages(process: int | None) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):  # the process has ended
        return 0
