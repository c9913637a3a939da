"""Measure how long training waits for videos in an emulated bucket: `python -m tests.benchmarks.bucket_wait`.

Runs the quickstart's first steps in turns on the dataset on disk, in the bucket with a cache that is empty at
first, and in the bucket without a cache. Prints for each the median time of a step that is spent waiting for
data, and the CPU time of the emulator, which shares this machine's cores. Needs motion_digits in --data_dir.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from inti_jax.host import stores
from inti_jax.runs.writers.jsonl import read_metrics
from tests.stores.emulator import BUCKET

_LOGGED = 10  # steps between two records


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bucket_wait")
    parser.add_argument("--data_dir", default="data", help="where motion_digits is prepared")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    # A process of its own, so that its CPU time can be told.
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.stores.emulator", "--port", "9029"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        os.environ.update(re.findall(r"(\w+)=(\S+)", server.stdout.readline()))
        with tempfile.TemporaryDirectory() as directory:
            measure(arguments, psutil.Process(server.pid), Path(directory))
    finally:
        server.kill()


def measure(arguments: argparse.Namespace, emulator: psutil.Process, directory: Path) -> None:
    """Run the cases in turns and print their figures."""
    url, local = f"gs://{BUCKET}/data", Path(arguments.data_dir)
    for path in sorted((local / "motion_digits").rglob("*")):
        if path.is_file():
            stores.upload(path, f"{url}/{path.relative_to(local)}")
    cases = {
        "disk": {"data_dir": str(local)},
        "bucket": {"data_dir": url, "cache_dir": str(directory / "cache")},
        "bucket, no cache": {"data_dir": url, "cache_gb": "0"},
    }
    run(cases["disk"], 2, directory)  # compiles
    found: dict[str, list[tuple[float, float, float]]] = {case: [] for case in cases}
    for _ in range(arguments.rounds):
        for case, keys in cases.items():
            shutil.rmtree(directory / "cache", ignore_errors=True)
            before = emulator.cpu_times()
            records = run(keys, arguments.steps, directory)[1:]  # the first one has the start of the loading
            after = emulator.cpu_times()
            seconds = after.user + after.system - before.user - before.system
            wait = statistics.median(record["data_wait"] for record in records)
            step = statistics.median(record["step_seconds"] for record in records)
            found[case].append((wait, step, seconds / arguments.steps))
    for case, figures in found.items():
        wait, step, seconds = (statistics.median(column) for column in zip(*figures, strict=True))
        print(
            f"{case:16} waits {1000 * wait * step:.1f} ms in a step of {1000 * step:.0f} ms; the "
            f"emulator takes {1000 * seconds:.1f} ms of CPU a step"
        )


def run(keys: dict[str, str], steps: int, directory: Path) -> list[dict]:
    """Train for some steps, and return the records of their times."""
    workdir = directory / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    subprocess.run(
        [
            sys.executable, "-m", "inti_jax.main",
            "--config", f"configs/quickstart.py:compression=inti,steps={steps}", "--workdir", str(workdir),
            f"--config.train.log_every_steps={min(_LOGGED, steps)}", "--config.train.eval_every_steps=0",
            *(f"--config.data.{key}={value}" for key, value in keys.items()),
        ],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(directory / "compiled")},
        stderr=subprocess.DEVNULL,
        check=True,
    )  # fmt: skip
    return [record for record in read_metrics(workdir) if record["split"] == "train"]


if __name__ == "__main__":
    main()
