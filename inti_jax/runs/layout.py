"""Name the files in a run's directory, and lock it against other runs."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from inti_jax.errors import UserError
from inti_jax.host import locks


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Make `workdir` and lock it against other runs until the context ends. Only process 0 does so.

    The lock ends with its process, however that ends. A directory that this call made is removed again if
    nothing was written there. Raises UserError where another run holds the lock.
    """
    if jax.process_index() != 0:
        yield
        return
    made = not workdir.exists()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.held(workdir / "lock"))
        except locks.HeldError as error:
            raise UserError(
                f"{workdir} is in use by {error}: wait for it to end, or choose another --workdir"
            ) from None
        try:
            yield
        finally:
            stack.close()
            if made:
                with contextlib.suppress(OSError):  # it is not empty, and stays
                    workdir.rmdir()


def config_path(workdir: Path) -> Path:
    """Return the path of the run's record, config.json."""
    return workdir / "config.json"


def metrics_path(workdir: Path) -> Path:
    """Return the path of the run's metrics.jsonl."""
    return workdir / "metrics.jsonl"


def checkpoint_dir(workdir: Path) -> Path:
    """Return the directory of the run's checkpoints."""
    return workdir / "checkpoints"


def predictions_dir(workdir: Path) -> Path:
    """Return the directory of the predictions of the run's evaluations."""
    return workdir / "predictions"


def tensorboard_dir(workdir: Path) -> Path:
    """Return the directory of the run's TensorBoard events and profiler traces."""
    return workdir / "tensorboard"


def wandb_id_path(workdir: Path) -> Path:
    """Return the path of the id of the run at Weights & Biases, beside the files of that library."""
    return workdir / "wandb" / "id"


def compiled_dir(workdir: Path) -> Path:
    """Return the directory of the run's compiled programs."""
    return workdir / "compiled"
