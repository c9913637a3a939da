"""One process of two that save a sharded checkpoint together, a program of hosts_test.py.

The second checkpoint cannot be written by process 1, while process 0 ends with an error of its own, and so
waits for that checkpoint; and process 1 waits for what process 0 does not come to. `resource` limits what a
file may hold: Orbax meets the refusal that a full disk is.

With the argument `apart`, each process fails in a part of the second checkpoint that the other one finishes.
So both have threads at barriers to which the other does not come. These are made up, since it takes luck with
a full disk: they sleep for two minutes.
"""

import asyncio
import errno
import os
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint.experimental.v1._src.synchronization.thread_utils import BackgroundThreadRunner

from inti_jax import config
from inti_jax.distributed import joining
from inti_jax.errors import UserError
from inti_jax.host.command import run_command
from inti_jax.runs import checkpoint
from inti_jax.runs.checkpoint import CheckpointManager
from inti_jax.runs.state import TrainState


def main() -> None:
    address, index, workdir = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    apart = sys.argv[4:] == ["apart"]
    if index == 1:
        opened = [Path(sys.argv[0]).open() for _ in range(7)]  # so that the next one's number differs  # noqa
    with joining.joined(address, 2, index, config.Hosts()):
        mesh = jax.make_mesh((2,), ("data",))
        noise = jax.device_get(jax.random.normal(jax.random.key(0), (2**19,)))
        leaf = placed(mesh, noise, "data")
        with CheckpointManager(workdir, config.Checkpoint(keep=2, keep_best=0), start=None) as checkpoints:
            for step in (1, 2):
                if step == 2 and apart:
                    checkpoint._start_writing = failing_apart
                elif (step, index) == (2, 1):
                    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, resource.RLIM_INFINITY))
                state = TrainState(placed(mesh, jax.numpy.int32(step)), {"head.bias": leaf}, {}, {"mu": leaf})
                checkpoints.save(step, state, {"next_step": step, "bad": 0})
                if step == 1:
                    checkpoints.wait()
            if apart:
                checkpoints.wait()
            if index == 0:
                raise UserError("process 0 has an error of its own")
            multihost_utils.sync_global_devices("what process 0 does not come to")


def failing_apart(path, parts):
    """Return what Orbax does, of a writing that fails while a thread of it waits."""

    async def write():
        waiting = asyncio.get_running_loop().create_task(asyncio.to_thread(time.sleep, 120))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    runner = BackgroundThreadRunner(write())
    return SimpleNamespace(result=runner.result, _thread_runner=runner)


def placed(mesh: jax.sharding.Mesh, value: jax.Array, *axes: str) -> jax.Array:
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    return jax.make_array_from_callback(value.shape, where, lambda at: value[at])


if __name__ == "__main__":
    run_command(main)
