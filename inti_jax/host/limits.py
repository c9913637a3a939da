"""Read this process's limits on cores and open files, and raise the latter."""

import math
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

# Open files to reserve for uncounted uses: checkpoints, records, sockets, libraries.
SPARE_FILES = 128

# A higher soft limit gains us nothing, and slows programs that loop over all possible file descriptors.
_MOST_OPEN_FILES = 2**20


def cores() -> int:
    """Count the cores that this process may use, by its affinity and the CPU quotas of its cgroups.

    A fractional quota is rounded up. On Python 3.13 and later PYTHON_CPU_COUNT applies as well.
    """
    available = _affinity()
    quota = cpu_quota()
    return available if quota is None else max(1, min(available, math.ceil(quota)))


def cpu_quota(process: Path = Path("/proc/self")) -> float | None:
    """Read the CPU quota of `process` from its cgroups, in cores; None where they set no limit.

    Reads cgroups v1 and v2, and every group from the process's own up to the mounted root. The lowest quota
    applies, so a container in a pod is under both (https://docs.kernel.org/admin-guide/cgroup-v2.html,
    `cpu.max`).
    """
    try:
        mounts = (process / "mountinfo").read_text().splitlines()
        groups = (process / "cgroup").read_text().splitlines()
    except OSError:
        return None
    quotas = [
        quota
        for root, mounted, version in _cpu_mounts(mounts)
        for group in _groups(groups, version)
        for directory in _upwards(root, mounted, group)
        if (quota := _quota_of(directory, version)) is not None
    ]
    return min(quotas, default=None)


def open_files() -> int:
    """Count the file descriptors that this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1  # less the one that lists them


def file_limits() -> tuple[int, int]:
    """Read how many files this process may open: now, and after it raises the limit as far as it can."""
    soft, hard = (
        _MOST_OPEN_FILES if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    return soft, max(soft, min(hard, _MOST_OPEN_FILES))


def raise_file_limit(needed: int) -> int:
    """Let this process and those it starts open `needed` files, as far as the hard limit allows.

    Gives the limit in force afterwards.
    """
    soft, most = file_limits()
    if needed <= soft:
        return soft
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def _affinity() -> int:
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    return len(os.sched_getaffinity(0))


def _cpu_mounts(mounts: list[str]) -> Iterator[tuple[str, Path, int]]:
    """Find the cgroup hierarchies that may limit CPU time; yield each one's root, mount point and version."""
    for line in mounts:
        # 31 23 0:28 /root /where options [tags] - type source options
        fields, _, filesystem = line.partition(" - ")
        root, where = (re.sub(r"\\(\d{3})", _octal, field) for field in fields.split()[3:5])
        kind, _, options = filesystem.split(maxsplit=2)
        if kind == "cgroup2":
            yield root, Path(where), 2
        elif kind == "cgroup" and "cpu" in options.split(","):
            yield root, Path(where), 1


def _octal(match: re.Match[str]) -> str:
    return chr(int(match[1], 8))


def _groups(lines: list[str], version: int) -> Iterator[str]:
    """Yield the process's group in the hierarchy of `version`. A line is `id:controllers:path`."""
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if (controllers == "") if version == 2 else ("cpu" in controllers.split(",")):
            yield path


def _upwards(root: str, mounted: Path, group: str) -> Iterator[Path]:
    """Yield the directories of `group` and of the groups that contain it, as far as they are mounted."""
    below = Path(group)
    # A container may see its group's path as the host does, while only its own group is mounted.
    if not below.is_relative_to(root) or ".." in below.parts:
        below = Path(root)
    parts = below.relative_to(root).parts
    for depth in range(len(parts), -1, -1):
        yield mounted.joinpath(*parts[:depth])


def _quota_of(directory: Path, version: int) -> float | None:
    try:
        if version == 2:
            quota, period = (directory / "cpu.max").read_text().split()
        else:
            quota = (directory / "cpu.cfs_quota_us").read_text()
            period = (directory / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # `max`, or a group without the file
        return None
