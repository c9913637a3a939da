"""How long a run takes to go on after a kill, with and without what it compiled kept on disk.

python -m inti_jax.prepare motion_digits --data_dir data
python -m tests.benchmarks.restart_benchmark [CONFIG]
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from inti_jax.runs.writers.jsonl import read_metrics

_CONFIG = "configs/quickstart.py:compression=inti"


def seconds_to(step: int, workdir: Path, config: str, **environment: str) -> float:
    """From the start of the process to the record of that step, when the process is killed."""
    command = [sys.executable, "-m", "inti_jax.main", "--config", config, "--workdir", str(workdir)]
    command += ["--config.train.log_every_steps=1", "--config.checkpoint.every_steps=2"]
    started = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.DEVNULL)
    try:
        while not any(r["split"] == "train" and r["step"] >= step for r in read_metrics(workdir)):
            if process.poll() is not None:
                raise SystemExit("the run ended by itself: start it by hand to see why")
            time.sleep(0.05)
        return time.perf_counter() - started
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def main() -> None:
    config = sys.argv[1] if len(sys.argv) > 1 else _CONFIG
    for name, environment in (("kept", {}), ("not kept", {"JAX_ENABLE_COMPILATION_CACHE": "0"})):
        with tempfile.TemporaryDirectory() as directory:
            workdir = Path(directory)
            first = seconds_to(4, workdir, config, **environment)
            records = workdir / "metrics.jsonl"
            records.unlink()  # the second start is timed to its own first record
            second = seconds_to(1, workdir, config, **environment)
            compiled = [r for r in read_metrics(workdir) if r["split"] == "compile"]
            print(
                f"{name}: first start {first:.1f} s to step 4, second {second:.1f} s to its first step; "
                + ", ".join(f"{r['what']} {r['seconds']:.1f} s, cached {r['cached']}" for r in compiled),
                flush=True,
            )


if __name__ == "__main__":
    main()
