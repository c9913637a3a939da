"""Several processes as one run on this machine."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

# What tests compile runs for milliseconds: to optimize it would take most of their time, and so would fusions
# that go through MLIR. JAX 0.12 no longer knows the flag for these, and an unknown flag ends a process.
# Several tests run at once, so no program needs to be compiled in parts.
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if metadata.version("jaxlib").startswith("0.10."):
    QUICK_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"


def free_address() -> str:
    """Where nobody listens yet."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def environment(devices: int) -> dict[str, str]:
    """That of a process with so many simulated devices, whose programs compile quickly."""
    flags = f"--xla_force_host_platform_device_count={devices} {QUICK_TO_COMPILE}"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}


def start_main(logs: Sequence[Path], arguments: Sequence[Sequence[str]]) -> list[subprocess.Popen]:
    """The main job of one device a process: process i has `arguments[i]`, and says all in `logs[i]`."""
    address, processes = free_address(), []
    for index, (path, own) in enumerate(zip(logs, arguments, strict=True)):
        command = [
            sys.executable, "-m", "inti_jax.main", "--coordinator_address", address,
            "--process_count", str(len(logs)), "--process_id", str(index), *own,
        ]  # fmt: skip
        with path.open("w") as log:
            processes.append(subprocess.Popen(command, env=environment(1), stdout=log, stderr=log))
    return processes
