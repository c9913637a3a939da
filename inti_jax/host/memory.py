"""The memory a run holds on its host and on its devices."""

import multiprocessing
import os
from pathlib import Path

import jax


def resident_bytes() -> int:
    """Resident memory of this process and its workers. What they share with each other counts for each."""
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    return sum(_resident_pages(process) for process in processes) * os.sysconf("SC_PAGE_SIZE")


def device_bytes() -> dict[str, int]:
    """`hbm_bytes` in use now and `hbm_peak_bytes` since the start, on the fullest device of this process.

    Empty where devices do not say, as CPUs.
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
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return 0
