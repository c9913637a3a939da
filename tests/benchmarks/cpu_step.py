"""Time a training step on this CPU, as compiled by default and with oneDNN, bfloat16 and huge pages.

    python -m tests.benchmarks.cpu_step [--config egogestar:compression=inti] [--rounds 5] [--steps 6]

Weights and clips are random. Each row adds a setting to those above. Settings of the environment count from a
process's start, so each round starts a process for each row, in turn. Prints the median over the rounds of a
step's seconds, and its ratio to the first row. The first two steps of each process are left out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

# The settings that each row adds: the recipe's compiler options, and the environment.
ROWS = {
    "default": {},
    "oneDNN": {},  # the compiler options of the recipe
    "bfloat16 products": {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"},
    "huge pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
}


def main() -> None:
    """Print a row for each setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="egogestar:compression=inti")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)  # of a process that times
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(_seconds(arguments.config, arguments.row != "default", arguments.steps)))
        return
    taken: dict[str, list[float]] = {row: [] for row in ROWS}
    for _ in range(arguments.rounds):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        for row, added in ROWS.items():
            environment |= added
            command = [sys.executable, "-m", "tests.benchmarks.cpu_step", "--row", row]
            command += ["--config", arguments.config, "--steps", str(arguments.steps)]
            process = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
            taken[row] += json.loads(process.stdout)
    print(f"{len(os.sched_getaffinity(0))} cores, {arguments.config}, {arguments.rounds} rounds")
    first = statistics.median(taken["default"])
    for row, seconds in taken.items():
        median = statistics.median(seconds)
        print(f"{row:<20}{median:>8.2f} s{median / first:>8.2f}")


def _seconds(config_name: str, recipes_options: bool, steps: int) -> list[float]:
    """Time the steps after the first two, in seconds."""
    import jax
    import jax.numpy as jnp

    from inti_jax import config
    from inti_jax.cost.plan import record_of
    from inti_jax.distributed import sharding
    from inti_jax.training import train_step

    overrides = [] if recipes_options else ["--config.train.compiler_options=()"]
    record = record_of(config.load_config(config_name, overrides), classes=10)
    mesh = sharding.make_mesh(record.config.mesh)
    shapes, lowered = train_step.lower_step(record, mesh)
    compiled = lowered.compile()
    batch_shapes = lowered.args_info[0][1]
    key = jax.random.key(0)

    def filled(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jax.random.normal(key, leaf.shape, leaf.dtype) / 50
        return jnp.ones(leaf.shape, leaf.dtype)

    state = jax.tree.map(filled, shapes)
    batch = {name: filled(leaf) for name, leaf in batch_shapes.items()}
    seconds = []
    for _ in range(2 + steps):
        start = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


if __name__ == "__main__":
    main()
