"""Reach JAX's coordination service, through which the processes of a run talk.

They can talk at any time, whatever their devices compute. JAX has no public way to its client: public
functions that talk, as in `multihost_utils`, compute on the devices.
"""

from typing import Any

from jax._src.distributed import global_state


def client() -> Any:
    """Return this process's client of the service; None where a process runs alone."""
    return global_state.client


def place() -> tuple[int, int]:
    """Return the index of this process, from 0, and the number of processes. Touches no device."""
    return global_state.process_id or 0, global_state.num_processes or 1
