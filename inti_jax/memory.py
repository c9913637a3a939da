"""The memory a run holds on its host."""

import multiprocessing
import os
from pathlib import Path


def resident_bytes() -> int:
    """Resident memory of this process and its workers. What they share with each other counts for each."""
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    return sum(_resident_pages(process) for process in processes) * os.sysconf("SC_PAGE_SIZE")


def _resident_pages(process: int | None) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return 0
