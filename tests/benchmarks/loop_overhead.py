"""What the training loop adds to its steps: `python -m tests.benchmarks.loop_overhead --data_dir DIR`.

Times the jitted step alone on one batch that is already on the device, and the whole loop (figures, logging,
progress) over as many steps on the same batch, in turns, in one process: medians over intervals of ten steps,
since other load comes and goes. Decoding is left out: where the CPU computes, it would compete with the step.
Needs motion_digits in DIR.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax
from flax import nnx

from inti_jax import config
from inti_jax.config.backbones import published
from inti_jax.data import pipeline
from inti_jax.data.dataset import open_dataset
from inti_jax.distributed import sharding
from inti_jax.runs import initial, state
from inti_jax.runs.record import Dataset, RunRecord
from inti_jax.runs.writers.jsonl import read_metrics
from inti_jax.training import loop, optim, train_step

_INTERVAL = 10


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.loop_overhead")
    parser.add_argument("--data_dir", required=True, help="where motion_digits is prepared")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    steps = arguments.steps
    settings = config.load_config(
        "configs/quickstart.py:compression=inti",
        [
            f"--config.data.data_dir={arguments.data_dir}",
            f"--config.train.steps={_INTERVAL + steps}",
            f"--config.train.log_every_steps={_INTERVAL}",
            f"--config.checkpoint.every_steps={10 * steps}",
        ],
    )
    ratios = []
    for round_number in range(arguments.rounds):
        alone, batch = _steps_alone(settings, steps)
        loop = _loop(settings, batch)
        ratios.append(loop / alone)
        print(
            f"round {round_number}: a step alone {1000 * alone:.1f} ms, in the loop {1000 * loop:.1f} ms, "
            f"ratio {ratios[-1]:.3f}"
        )
    print(f"median ratio {statistics.median(ratios):.3f}")


def first_step(settings: config.Config) -> tuple[Any, state.TrainState, Any, jax.sharding.Mesh]:
    """Make the jitted step of a run, the state that it starts from, the model's graph, and the mesh."""
    mesh = sharding.make_mesh(settings.mesh)
    dataset = open_dataset(settings.data.name, settings.data.data_dir, "train")
    transform, schedule = optim.make_optimizer(settings.train, settings.train.steps)
    record = RunRecord(settings, Dataset.of(dataset), published(settings.model.backbone))
    graphdef = nnx.graphdef(state.abstract_model(record))
    target = state.abstract_state(record, transform, mesh)
    train_state = initial.initial_state(record, transform, target)
    step_fn = train_step.compile_step(settings, graphdef, transform, schedule, target, mesh)
    return step_fn, train_state, graphdef, mesh


def _steps_alone(settings: config.Config, steps: int) -> tuple[float, train_step.Batch]:
    step_fn, train_state, *_ = first_step(settings)
    batch = one_batch(settings)
    seconds = []
    for _ in range((_INTERVAL + steps) // _INTERVAL):
        started = time.perf_counter()
        for _ in range(_INTERVAL):
            train_state, metrics = step_fn(train_state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:]) / _INTERVAL, batch  # the first compiles


def one_batch(settings: config.Config) -> train_step.Batch:
    """The first batch of `settings`, on the devices."""
    dataset = open_dataset(settings.data.name, settings.data.data_dir, "train")
    with contextlib.closing(
        pipeline.train_batches(
            dataset, settings.data, seed=0, global_batch=settings.train.global_batch, num_steps=1
        )
    ) as batches:
        return sharding.place_batch(next(batches), sharding.make_mesh(settings.mesh))


def _loop(settings: config.Config, batch: train_step.Batch) -> float:
    """Seconds a step of a run that sees `batch` again and again, from its own records."""
    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch.object(loop, "DevicePrefetch", lambda *_, **__: Same(batch)),
    ):
        loop.train(settings, Path(directory))
        records = [record for record in read_metrics(Path(directory)) if record["split"] == "train"]
    return statistics.median(record["step_seconds"] for record in records if record["step"] > _INTERVAL)


class Same:
    """An input that gives one batch for ever."""

    def __init__(self, batch: train_step.Batch):
        self._batch = batch

    def __next__(self) -> train_step.Batch:
        return self._batch

    def close(self) -> None:
        pass


if __name__ == "__main__":
    main()
