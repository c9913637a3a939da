"""What the training loop adds to its steps: `python -m tests.benchmarks.loop_overhead --data_dir DIR`.

Times the jitted step alone on one batch that is already on the device, and the whole loop (input, figures,
logging, checkpoints at its end) over as many steps, in turns, in one process. Needs motion_digits in DIR.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import jax
from flax import nnx

from inti_jax import cli, config, initial, optim, run, sharding, state, train
from inti_jax.data import pipeline
from inti_jax.data.dataset import open_dataset
from inti_jax.models.backbone import Backbone

_WARMUP = 10


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.loop_overhead")
    parser.add_argument("--data_dir", required=True, help="where motion_digits is prepared")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    steps = arguments.steps
    settings = cli.load_config(
        "configs/quickstart.py:compression=inti",
        [
            f"--config.data.data_dir={arguments.data_dir}",
            f"--config.train.steps={_WARMUP + steps}",
            "--config.train.log_every_steps=10",
            "--config.train.eval_every_steps=0",
            f"--config.checkpoint.every_steps={10 * steps}",
        ],
    )
    ratios = []
    for round_number in range(arguments.rounds):
        alone = _steps_alone(settings, steps)
        loop = _loop(settings, steps)
        ratios.append(loop / alone)
        print(
            f"round {round_number}: {steps} steps alone {alone:.2f} s, in the loop {loop:.2f} s, "
            f"ratio {ratios[-1]:.3f}"
        )
    print(f"median ratio {statistics.median(ratios):.3f}")


def _steps_alone(settings: config.Config, steps: int) -> float:
    mesh = sharding.make_mesh(settings.mesh)
    dataset = open_dataset(settings.data.name, settings.data.data_dir, "train")
    transform, schedule = optim.make_optimizer(settings.train, settings.train.steps)
    record = run.RunRecord(settings, run.Dataset.of(dataset), Backbone())
    graphdef = nnx.graphdef(state.abstract_model(record))
    target = state.abstract_state(record, transform, mesh)
    train_state = initial.initial_state(record, transform, target)
    step_fn = train.compile_step(settings, graphdef, transform, schedule, target, mesh)
    with contextlib.closing(
        pipeline.train_batches(
            dataset, settings.data, seed=0, global_batch=settings.train.global_batch, num_steps=1
        )
    ) as batches:
        batch = sharding.place_batch(next(batches), mesh)
    for _ in range(_WARMUP):
        train_state, metrics = step_fn(train_state, batch)
    jax.block_until_ready(metrics)
    started = time.perf_counter()
    for _ in range(steps):
        train_state, metrics = step_fn(train_state, batch)
    jax.block_until_ready(metrics)
    return time.perf_counter() - started


def _loop(settings: config.Config, steps: int) -> float:
    """Seconds of the last `steps` steps of a run, from its own records."""
    from inti_jax.writers import read_metrics

    with tempfile.TemporaryDirectory() as directory:
        train.train(settings, Path(directory))
        records = [record for record in read_metrics(Path(directory)) if record["split"] == "train"]
    interval = settings.train.log_every_steps
    return sum(record["step_seconds"] * interval for record in records if record["step"] > _WARMUP)


if __name__ == "__main__":
    main()
