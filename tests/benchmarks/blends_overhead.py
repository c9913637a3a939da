"""Measure what the records of blends add to training: `python -m tests.benchmarks.blends_overhead`.

Times intervals of `train.log_every_steps` steps of the quickstart with InTI on one batch that is already on
the device, with and without the measurement at their end, in turns, in one process. Needs motion_digits in
--data_dir.
"""

import argparse
import statistics
import time

import jax

from inti_jax import config
from inti_jax.training import blends
from tests.benchmarks.loop_overhead import first_step, one_batch


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.blends_overhead")
    parser.add_argument("--data_dir", default="data", help="where motion_digits is prepared")
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    settings = config.load_config(
        "configs/quickstart.py:compression=inti", [f"--config.data.data_dir={arguments.data_dir}"]
    )
    step_fn, train_state, graphdef, mesh = first_step(settings)
    measure, batch = blends.compile_figures(graphdef, mesh), one_batch(settings)
    steps = settings.train.log_every_steps
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(1 + arguments.rounds):
        for measured in (False, True):
            started = time.perf_counter()
            for _ in range(steps):
                train_state, found = step_fn(train_state, batch)
            if measured:
                found = measure(train_state.params("raw"), batch["video"], batch["mask"])
            jax.block_until_ready(found)
            seconds[measured].append((time.perf_counter() - started) / steps)
    # The first round compiles.
    without, with_it = (statistics.median(seconds[measured][1:]) for measured in (False, True))
    print(
        f"a step {1000 * without:.1f} ms, with a measurement every {steps} steps {1000 * with_it:.1f} ms: "
        f"ratio {with_it / without:.4f} (a measurement takes {1000 * steps * (with_it - without):.0f} ms)"
    )


if __name__ == "__main__":
    main()
