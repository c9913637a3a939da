"""The service through which the processes of a run can talk at any time, whatever their devices compute."""

from typing import Any

from jax._src.distributed import global_state  # JAX has no public name for it; Orbax goes the same way


def client() -> Any:
    """This process's client of it; None where a process runs alone."""
    return global_state.client


def place() -> tuple[int, int]:
    """Say which process of the run this is, from 0, and how many there are. Touches no device."""
    return global_state.process_id or 0, global_state.num_processes or 1
