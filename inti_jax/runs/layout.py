"""Name the files in a run's directory, and lock it against other runs.

The directory of a run in an object store is a mirror of it on this machine (`host.mirrors`), for its small
files. Its checkpoints and compiled programs lie in the store alone.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from etils import epath

from inti_jax.errors import UserError
from inti_jax.host import leases, locks, mirrors, stores


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Make `workdir` and lock it against other runs until the context ends. Only process 0 does so.

    The lock ends with its process, however that ends. A directory that this call made is removed again if
    nothing was written there. In an object store, what the run writes meanwhile is written there once a
    minute and in the end. Raises UserError where another run holds the lock.
    """
    if jax.process_index() != 0:
        yield
        return
    made = not workdir.exists()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.held(workdir / "lock"))
        except leases.HeldError as error:
            raise UserError(
                f"{workdir} is in use by {error}: wait for it to end, or choose another --workdir"
            ) from None
        stack.enter_context(mirrors.pushed(workdir))
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


def checkpoint_dir(workdir: Path) -> epath.Path:
    """Return the absolute directory of the run's checkpoints."""
    return _stored(workdir) / "checkpoints"


def predictions_dir(workdir: Path) -> Path:
    """Return the directory of the predictions of the run's evaluations."""
    return mirrors.bring(workdir / "predictions")


def tensorboard_dir(workdir: Path) -> Path:
    """Return the directory of the run's TensorBoard events and profiler traces."""
    return workdir / "tensorboard"


def wandb_id_path(workdir: Path) -> Path:
    """Return the path of the id of the run at Weights & Biases, beside the files of that library."""
    return workdir / "wandb" / "id"


def compiled_dir(workdir: Path) -> epath.Path:
    """Return the absolute directory of the run's compiled programs."""
    return _stored(workdir) / "compiled"


def settle(workdir: Path) -> None:
    """Make sure that what the run wrote so far outlives this machine, where it lies in an object store.

    Raises UserError where the store cannot be written.
    """
    mirrors.push(workdir)


def _stored(workdir: Path) -> epath.Path:
    """Return where the run's large files lie: in the store where it is in one, else on this machine."""
    return epath.Path(stores.origin(workdir) or workdir.absolute())
