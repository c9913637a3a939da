"""Several processes as one run: how they find each other.

Cloud TPU, SLURM and Open MPI say in the environment how many processes there are, and JAX finds the rest;
elsewhere three flags do (`cli.add_process_arguments`). One process on one machine starts nothing.
"""

import os

import jax

from inti_jax.errors import UsageError, UserError

# Seconds for all processes to appear.
INITIALIZATION_TIMEOUT = 300
# Seconds after which JAX's own service takes a silent process for dead.
HEARTBEAT_TIMEOUT = 100
# Seconds that a process which is done waits for the others to be done.
SHUTDOWN_TIMEOUT = 300


def start(coordinator_address: str | None, process_count: int | None, process_id: int | None) -> None:
    """Makes this process one of several, where flags or the environment say so.

    Before any device is touched. Raises UsageError for flags that do not make sense, UserError where the
    others do not appear.
    """
    by_flags = any(flag is not None for flag in (coordinator_address, process_count, process_id))
    if by_flags:
        _check_flags(coordinator_address, process_count, process_id)
    if process_count == 1 or not (by_flags or _environment_has_others()):
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # preemption.py does that: JAX's own would swallow a SIGTERM that comes before the first step.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address,
            process_count,
            process_id,
            cluster_detection_method="deactivate" if by_flags else None,
            initialization_timeout=INITIALIZATION_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except (RuntimeError, ValueError, OSError) as error:  # JAX's, the socket library's
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"the processes did not find each other in {INITIALIZATION_TIMEOUT} s ({reason}): do all run, "
            "and does each reach --coordinator_address, which is process 0's?"
        ) from error


def _check_flags(coordinator_address: str | None, process_count: int | None, process_id: int | None) -> None:
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
            f"--process_id {process_id} of --process_count {process_count}: "
            "ids go from 0 to the count less one"
        )


def _environment_has_others() -> bool:
    """Whether a launcher, or the machine itself, says that this is one of several processes."""
    # All of these are there under srun alone.
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
    if all(name in os.environ for name in slurm) and int(os.environ["SLURM_NTASKS"]) > 1:
        return True
    if int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        if "OMPI_MCA_orte_hnp_uri" not in os.environ:
            raise UsageError(
                "this Open MPI does not say where process 0 is: give --coordinator_address, --process_count "
                '"$OMPI_COMM_WORLD_SIZE" and --process_id "$OMPI_COMM_WORLD_RANK"'
            )
        return True
    return _on_tpu_pod()


def _on_tpu_pod() -> bool:
    from jax._src import cloud_tpu_init  # JAX's own answer, which it found without any network

    if not cloud_tpu_init.running_in_cloud_tpu_vm or "tpu" not in (jax.config.read("jax_platforms") or "tpu"):
        return False
    if int(os.environ.get("MEGASCALE_NUM_SLICES", "1")) > 1:
        return True
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES"))
    if hosts is not None:
        return "," in hosts
    # On a plain TPU machine JAX asks the metadata server, unless it was told that there is none.
    return "TPU_SKIP_MDS_QUERY" not in os.environ
