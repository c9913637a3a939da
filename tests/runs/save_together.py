"""One process of two that save a sharded checkpoint together, a program of hosts_test.py.

The second checkpoint cannot be written by process 1, while process 0 ends with an error of its own, and so
waits for that checkpoint; and process 1 waits for what process 0 does not come to. `resource` limits what a
file may hold: Orbax meets the refusal that a full disk is.
"""

import resource
import sys
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from inti_jax import config
from inti_jax.distributed import joining
from inti_jax.errors import UserError
from inti_jax.host.command import run_command
from inti_jax.runs.checkpoint import CheckpointManager
from inti_jax.runs.state import TrainState


def main() -> None:
    address, index, workdir = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    if index == 1:
        opened = [Path(sys.argv[0]).open() for _ in range(7)]  # so that the next one's number differs  # noqa
    with joining.joined(address, 2, index, config.Hosts()):
        mesh = jax.make_mesh((2,), ("data",))
        noise = jax.device_get(jax.random.normal(jax.random.key(0), (2**19,)))
        leaf = placed(mesh, noise, "data")
        with CheckpointManager(workdir, config.Checkpoint(keep=2, keep_best=0), start=None) as checkpoints:
            for step in (1, 2):
                if (step, index) == (2, 1):
                    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, resource.RLIM_INFINITY))
                state = TrainState(placed(mesh, jax.numpy.int32(step)), {"head.bias": leaf}, {}, {"mu": leaf})
                checkpoints.save(step, state, {"next_step": step, "bad": 0})
                if step == 1:
                    checkpoints.wait()
            if index == 0:
                raise UserError("process 0 has an error of its own")
            multihost_utils.sync_global_devices("what process 0 does not come to")


def placed(mesh: jax.sharding.Mesh, value: jax.Array, *axes: str) -> jax.Array:
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    return jax.make_array_from_callback(value.shape, where, lambda at: value[at])


if __name__ == "__main__":
    run_command(main)
