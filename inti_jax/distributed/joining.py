"""Join several processes into one run: connect them at the start, and end them together.

Cloud TPU, SLURM and Open MPI give the number of processes in the environment, and JAX finds the rest.
Elsewhere three flags give it (`cli.add_process_arguments`). One process on one machine starts nothing.
"""

import atexit
import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

# JAX's detection of the cluster. Its public form, `jax.distributed.initialize`, would connect at once, and
# not through the relay.
from jax._src import cloud_tpu_init, clusters

from inti_jax import config
from inti_jax.distributed import backend, coordination, liveness
from inti_jax.distributed.relay import Relay
from inti_jax.errors import Stopped, UsageError, UserError

# Seconds in which all processes should connect.
INITIALIZATION_TIMEOUT = 300
# Seconds of silence of one process after which JAX ends the others. liveness.py acts sooner, and names it.
HEARTBEAT_TIMEOUT = 600
# Seconds that JAX waits at the end for all processes to report that they are done.
SHUTDOWN_TIMEOUT = 60
# Seconds that a failed process may take to exit.
_EXIT_TIMEOUT = 20

_BY_FLAGS = "give --coordinator_address, --process_count and --process_id"


@dataclasses.dataclass(frozen=True)
class _Cluster:
    """The place of this process among the others.

    Process 0 listens at `coordinator_address`. `devices` are this process's devices where it does not use all
    of its machine's.
    """

    coordinator_address: str
    process_count: int
    process_id: int
    devices: Any = None


@contextlib.contextmanager
def joined(
    coordinator_address: str | None, process_count: int | None, process_id: int | None, limits: config.Hosts
) -> Iterator[None]:
    """Make this process one of several inside the context, where flags or the environment say so.

    Enter it before any device is touched. An error inside ends the other processes too, and so does a process
    that is lost or stalled: see liveness.py. Raises UsageError for flags that make no sense, UserError where
    the processes do not find each other.
    """
    cluster = _cluster(coordinator_address, process_count, process_id)
    if cluster is None or cluster.process_count == 1:
        yield
        return
    end_with = _skip_finalization()
    watch = liveness.start(*_initialize(cluster), limits)
    try:
        yield
    except (Stopped, SystemExit) as error:  # all processes raise these at the same point
        _leave(watch)
        if isinstance(error, Stopped):
            end_with(error.status)
        raise
    except Exception as error:
        if _another_may_be_lost(error):
            time.sleep(limits.silent_seconds + 5)  # if one is lost, the watch ends this process
        _end_soon(error.exit_code if isinstance(error, UserError) else 1)
        watch.fail(_one_line(error))
        raise
    except KeyboardInterrupt:
        _end_soon(130)
        watch.fail("it was interrupted")
        raise
    _leave(watch)
    end_with(0)


def _leave(watch: liveness.Watch) -> None:
    """Wait until all processes are done: process 0 runs the service through which they talk."""
    watch.leave()
    coordination.client().wait_at_barrier("inti_jax/done", int(1000 * watch.limits.slow_seconds))
    watch.stop()


def _another_may_be_lost(error: BaseException | None) -> bool:
    """Tell whether JAX's runtime caused `error`, as when a collective loses another process."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:200]}"


def _end_soon(code: int) -> None:
    """End this process without JAX's shutdown, which waits for processes that are ending themselves."""
    atexit.register(_exit, code)  # runs before JAX's handler, which was registered earlier
    # Threads that still run may keep the interpreter from reaching that handler.
    timer = threading.Timer(_EXIT_TIMEOUT, _exit, (code,))
    timer.daemon = True
    timer.start()


def _skip_finalization() -> Callable[[int], None]:
    """Let the process end right after its exit handlers, JAX's shutdown among them.

    While Python before 3.14 finalizes, a thread of C++ that asks for the interpreter's lock is unwound, which
    aborts the process: a run that had done all its work ended with SIGABRT. Call it before JAX registers its
    handler, since handlers run in reverse order. It gives a function that takes the exit status; until that
    is called nothing changes.
    """
    statuses: list[int] = []

    def end() -> None:
        if statuses:
            _exit(statuses[-1])

    atexit.register(end)
    return statuses.append


def _exit(code: int) -> None:
    """End this process at once, with what it has printed."""
    with contextlib.suppress(OSError):  # the reader of a pipe may be gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _cluster(
    coordinator_address: str | None, process_count: int | None, process_id: int | None
) -> _Cluster | None:
    """Find this process's place from the flags or the environment; None where it runs alone.

    Raises UsageError for flags that make no sense, UserError where the other processes cannot be found.
    """
    given = (coordinator_address, process_count, process_id)
    if any(flag is not None for flag in given):
        return _check_flags(*given)
    if not _environment_has_others():
        return None
    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, INITIALIZATION_TIMEOUT
        )
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise UserError(f"the other processes cannot be located: {_one_line(error)}; {_BY_FLAGS}") from error
    address, count, index, devices = found
    if address is None or count is None or index is None:
        raise UserError(f"the other processes cannot be located; {_BY_FLAGS}")
    return _Cluster(address, count, index, devices)


def _initialize(cluster: _Cluster) -> tuple[Any, threading.Event]:
    """Connect to the other processes.

    Returns the service's client, and an event that is set when the connection to the service breaks. Raises
    UserError where the processes do not find each other.
    """
    # Set it on every platform: simulated hosts compute on CPUs.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # preemption.py handles SIGTERM. JAX's own service would swallow one that comes before the first step.
    jax.config.update("jax_enable_preemption_service", False)
    address, closed = cluster.coordinator_address, threading.Event()
    if cluster.process_id != 0:
        host, _, port = address.rpartition(":")
        relay = Relay(host.strip("[]"), int(port), INITIALIZATION_TIMEOUT)
        address, closed = relay.address, relay.lost
    try:
        jax.distributed.initialize(
            address,
            cluster.process_count,
            cluster.process_id,
            local_device_ids=cluster.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=INITIALIZATION_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        _end_soon(UserError.exit_code)
        raise UserError(
            f"the {cluster.process_count} processes did not find each other at {cluster.coordinator_address} "
            f"in {INITIALIZATION_TIMEOUT} s: {_one_line(error)}"
        ) from error
    return coordination.client(), closed


def _check_flags(
    coordinator_address: str | None, process_count: int | None, process_id: int | None
) -> _Cluster:
    if coordinator_address is None or process_count is None or process_id is None:
        raise UsageError(
            "--coordinator_address, --process_count and --process_id: give all three, or none of them"
        )
    host, _, port = coordinator_address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError(
            f"--coordinator_address {coordinator_address}: it should be HOST:PORT, where process 0 can listen"
        )
    if process_count < 1 or not 0 <= process_id < process_count:
        raise UsageError(
            f"--process_id {process_id} of --process_count {process_count}: ids run from 0 to "
            f"{process_count - 1}"
        )
    return _Cluster(coordinator_address, process_count, process_id)


def _environment_has_others() -> bool:
    """Tell whether a launcher or the machine itself says that this is one of several processes."""
    # Only srun sets all of these.
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
    if all(name in os.environ for name in slurm) and int(os.environ["SLURM_NTASKS"]) > 1:
        return True
    if int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        if "OMPI_MCA_orte_hnp_uri" not in os.environ:
            raise UsageError(
                f"this Open MPI does not tell the address of process 0: {_BY_FLAGS} "
                '(--process_count "$OMPI_COMM_WORLD_SIZE" --process_id "$OMPI_COMM_WORLD_RANK")'
            )
        return True
    return _on_tpu_pod()


def _on_tpu_pod() -> bool:
    if not cloud_tpu_init.running_in_cloud_tpu_vm or "tpu" not in (backend.platforms() or "tpu"):
        return False
    if int(os.environ.get("MEGASCALE_NUM_SLICES", "1")) > 1:
        return True
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES"))
    if hosts is not None:
        return "," in hosts
    # On a TPU machine without these variables JAX asks the metadata server, unless it is told to skip it.
    return "TPU_SKIP_MDS_QUERY" not in os.environ
