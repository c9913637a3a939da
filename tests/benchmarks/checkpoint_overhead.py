"""What a checkpoint every 50 steps costs: `python -m tests.benchmarks.checkpoint_overhead --data_dir DIR`.

Runs the embedded training's own loop, with evaluation left to its end and decoding left out (one batch,
again and again), and a checkpoint due every 50 steps of which every other one is left out. So intervals of
50 steps with and without a save take turns, and what else the machine does hits both alike; the first
interval, which compiles, is not counted. The cost is the median of what a save adds to an interval, as a
share of its two neighbours without. Needs motion_digits in DIR.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

from inti_jax import config
from inti_jax.runs import checkpoint
from inti_jax.runs.writers.jsonl import read_metrics
from inti_jax.training import loop
from tests.benchmarks.loop_overhead import Same, one_batch

EVERY = 50


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.checkpoint_overhead")
    parser.add_argument("--data_dir", required=True, help="where motion_digits is prepared")
    parser.add_argument("--pairs", type=int, default=8)
    arguments = parser.parse_args()
    settings = config.load_config(
        "configs/quickstart.py:compression=inti",
        [
            f"--config.data.data_dir={arguments.data_dir}",
            f"--config.train.steps={EVERY * (2 * arguments.pairs + 2)}",
            f"--config.train.log_every_steps={EVERY}",
            f"--config.checkpoint.every_steps={EVERY}",
        ],
    )
    batch = one_batch(settings)
    save, blocked, busy = checkpoint.CheckpointManager.save, [], []

    def every_other(self: checkpoint.CheckpointManager, step: int, *parts: object) -> None:
        if step // EVERY % 2 == 0:
            started = time.perf_counter()
            save(self, step, *parts)
            blocked.append(time.perf_counter() - started)

    finish = checkpoint.CheckpointManager._finish

    def timed_finish(self: checkpoint.CheckpointManager, *arguments: object) -> None:
        started = time.perf_counter()
        finish(self, *arguments)
        busy.append(time.perf_counter() - started)

    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch.object(loop, "DevicePrefetch", lambda *_, **__: Same(batch)),
        mock.patch.object(checkpoint.CheckpointManager, "save", every_other),
        mock.patch.object(checkpoint.CheckpointManager, "_finish", timed_finish),
    ):
        loop.train(settings, Path(directory))
        records = [record for record in read_metrics(Path(directory)) if record["split"] == "train"]
    seconds = {record["step"]: EVERY * record["step_seconds"] for record in records}
    # The interval that ends at step 50 k has in it the save of step 50 (k - 1).
    added = []
    for end in range(3 * EVERY, max(seconds), 2 * EVERY):
        saving, plain = seconds[end], statistics.mean((seconds[end - EVERY], seconds[end + EVERY]))
        added.append((saving - plain) / plain)
        print(f"steps {end - EVERY} to {end}: {saving:.2f} s with a save, {plain:.2f} s without")
    print(
        f"a save holds the loop up for {1000 * statistics.median(blocked):.0f} ms and goes on for "
        f"{1000 * statistics.median(busy):.0f} ms beside it"
    )
    cost = statistics.median(added)
    print(f"cost of a checkpoint every {EVERY} steps: {cost:.2%} (median of {len(added)})")


if __name__ == "__main__":
    main()
