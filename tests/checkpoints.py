"""Checkpoints of a few numbers, which cost nothing to save."""

import jax

from inti_jax import config
from inti_jax.runs import checkpoint
from inti_jax.runs.checkpoint import CheckpointManager
from inti_jax.runs.state import TrainState
from inti_jax.runs.writers.metrics_writer import MetricsWriter
from tests.configs import record, tiny


def little_state(value):
    """A state of a few numbers, which costs nothing to save."""
    leaf = jax.numpy.full((4,), value, jax.numpy.float32)
    return TrainState(
        step=jax.numpy.int32(value), trainable={"head.bias": leaf}, frozen={}, opt_state={"mu": leaf}
    )


def save(workdir, steps, **settings):
    start = checkpoint.find(workdir)
    with CheckpointManager(workdir, config.Checkpoint(**settings), start=start) as checkpoints:
        for step in steps:
            checkpoints.save(step, little_state(step), {"next_step": step, "bad": 0})


def value_at(workdir, step):
    restored, position = checkpoint.restore(workdir, step, little_state(0))
    assert int(restored.step) == position["next_step"] == step
    return float(restored.trainable["head.bias"][0])


def evaluated(workdir, **top1):
    """A run whose steps were evaluated so: `_2=0.5`."""
    settings = record(tiny())
    settings.write(workdir)
    writer = MetricsWriter(workdir, tiny())
    for step, value in top1.items():
        writer.write(int(step[1:]), "val", {"top1": value, "views": 1, "dataset": settings.dataset.sha256})
    return writer
