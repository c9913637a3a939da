"""Cores by affinity and cgroup quotas, as containers see them, and the limit of open files."""

import os
import subprocess
import sys

import pytest

from inti_jax.host import limits

V1 = "33 31 0:30 {root} {where} rw,relatime - cgroup cgroup rw,cpu,cpuacct"
V2 = "30 23 0:26 {root} {where} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"


@pytest.fixture
def process(tmp_path):
    """A /proc/self whose cgroups are these directories; a quota is (microseconds, period) or `max`."""

    def make(version, group, quotas, root="/"):
        mounted = tmp_path / "sys fs" / "cgroup"
        for path, (quota, period) in quotas.items():
            directory = mounted / path
            directory.mkdir(parents=True, exist_ok=True)
            if version == 2:
                (directory / "cpu.max").write_text(f"{quota} {period}\n")
            else:
                (directory / "cpu.cfs_quota_us").write_text(f"{quota}\n")
                (directory / "cpu.cfs_period_us").write_text(f"{period}\n")
        self = tmp_path / "self"
        self.mkdir()
        line = (V2 if version == 2 else V1).format(root=root, where=str(mounted).replace(" ", r"\040"))
        (self / "mountinfo").write_text(f"23 1 0:22 / /proc rw - proc proc rw\n{line}\n")
        v1 = f"4:cpuset:/other\n3:cpu,cpuacct:{group}\n"
        (self / "cgroup").write_text(f"{v1}0::/\n" if version == 1 else f"0::{group}\n")
        return self

    return make


@pytest.mark.parametrize(
    ("version", "group", "quotas", "root", "expected"),
    [
        (2, "/", {"": (800_000, 100_000)}, "/", 8),  # a container with a namespace of its own
        (2, "/pod/box", {"pod": (250_000, 100_000), "pod/box": ("max", 100_000)}, "/", 2.5),  # its pod's
        (2, "/pod/box", {"pod": (400_000, 100_000), "pod/box": (50_000, 100_000)}, "/", 0.5),
        (2, "/pod/box", {"pod/box": ("max", 100_000)}, "/", None),
        (2, "/../../other", {"": (300_000, 100_000)}, "/", 3),  # outside of what is mounted
        (1, "/docker/ab", {"docker/ab": (800_000, 100_000), "": (-1, 100_000)}, "/", 8),
        (1, "/docker/ab", {"": (150_000, 50_000)}, "/docker/ab", 3),  # only its own group is mounted
        (1, "/docker/ab", {"": (-1, 100_000)}, "/docker/ab", None),
        (1, "/", {"": (100_000, 0)}, "/", None),
    ],
)
def test_the_quota_is_the_least_of_the_nested_groups(process, version, group, quotas, root, expected):
    assert limits.cpu_quota(process(version, group, quotas, root)) == expected


@pytest.mark.parametrize(
    ("affinity", "quota", "cores"), [(208, 8.0, 8), (208, 2.5, 3), (4, 8.0, 4), (4, None, 4), (4, 0.2, 1)]
)
def test_cores_are_those_of_affinity_and_quota(monkeypatch, affinity, quota, cores):
    monkeypatch.setattr(limits, "_affinity", lambda: affinity)
    monkeypatch.setattr(limits, "cpu_quota", lambda: quota)
    assert limits.cores() == cores


def test_cores_here():
    assert 1 <= limits.cores() <= os.cpu_count()
    assert limits.cpu_quota(limits.Path("/absent")) is None


_RAISE = """
import resource
from inti_jax.host import limits

resource.setrlimit(resource.RLIMIT_NOFILE, (100, 1000))
print(limits.raise_file_limit(50), limits.raise_file_limit(200), limits.raise_file_limit(5000))
print(*resource.getrlimit(resource.RLIMIT_NOFILE), *limits.file_limits())
"""


def test_the_limit_of_open_files_is_raised_where_it_is_needed_as_far_as_it_goes():
    done = subprocess.run([sys.executable, "-c", _RAISE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["100", "1000", "1000", "1000", "1000", "1000", "1000"]


def test_open_files_are_counted(tmp_path):
    before = limits.open_files()
    with (tmp_path / "one").open("w"), (tmp_path / "two").open("w"):
        assert limits.open_files() == before + 2
    assert limits.open_files() == before
