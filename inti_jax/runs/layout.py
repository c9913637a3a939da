"""The directory of a run: the names of its files, and the lock that keeps other runs out."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from inti_jax.errors import UserError
from inti_jax.host import locks


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Keep other runs out of `workdir`, which is made; for the first host, others have no part.

    Raises UserError where another run is in it. What ends a process, however hard, ends its lock; a directory
    in which nothing was written is removed again.
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
                with contextlib.suppress(OSError):  # what it has by now stays
                    workdir.rmdir()


def config_path(workdir: Path) -> Path:
    return workdir / "config.json"


def metrics_path(workdir: Path) -> Path:
    return workdir / "metrics.jsonl"


def checkpoint_dir(workdir: Path) -> Path:
    return workdir / "checkpoints"


def tensorboard_dir(workdir: Path) -> Path:
    return workdir / "tensorboard"


def compiled_dir(workdir: Path) -> Path:
    return workdir / "compiled"
