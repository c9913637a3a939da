"""Save, find and restore the checkpoints of a training run. No other module calls Orbax.

A checkpoint has three parts: `params` (all parameters by path), `optimizer` (its state and the step count)
and `data` (the input pipeline's position). With `train.ema` it has a fourth, `ema`: the moving average of
what trains. It is written asynchronously, to a directory that is called as its step. Once it is whole, the
checksums of its files are written beside them: a directory without them is no checkpoint. The checksums are
needed because neither Orbax nor TensorStore would notice a flipped bit in an array. That they come last
needs no renaming of directories, which an object store does not have.
"""

import contextlib
import errno
import logging
import math
import os
import re
import sys
import textwrap
import threading
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import tensorstore
from etils import epath
from jax.experimental import multihost_utils

from inti_jax import config
from inti_jax.distributed import agreement, liveness
from inti_jax.errors import Stopped, UserError
from inti_jax.host import paths, stores
from inti_jax.models.parameters import Params
from inti_jax.runs import checksums, evaluations, layout, predictions, state
from inti_jax.runs.evaluations import Step
from inti_jax.runs.record import RunRecord
from inti_jax.runs.state import TrainState

log = logging.getLogger("inti_jax")
# Orbax logs a traceback for each of its threads that fails. `_failure` reports the same error in one line.
logging.getLogger("absl").addFilter(lambda record: "_SignalingThread" not in record.getMessage())

# The shapes of the arrays in each part of a checkpoint, by the name of the part.
Shapes = dict[str, list[tuple[int, ...]]]

# Bytes of the smallest slice that a device writes of an array that several have. Smaller ones are written
# sooner by one device than sliced.
_LEAST_SLICE = 2**18

# Directories that are not finished checkpoints: Orbax appends to the name while it writes (earlier versions
# of this project to `N.partial`, and deleted `N.old`), and `N.damaged` was set aside.
_UNFINISHED = re.compile(r"\d+(\.partial)?\.orbax-checkpoint-tmp.*|\d+\.(partial|old)")
_STEP = re.compile(r"0|[1-9]\d*")
_SET_ASIDE = re.compile(r"(\d+)\.damaged")


def find(workdir: Path, step: Step = None) -> int | None:
    """Find the checkpoint of `workdir` to use and return its step, which is the same on all hosts.

    Where the newest or the best is wanted, damaged ones are passed over with a warning. Returns None where
    the newest is wanted and there are no checkpoints. Raises UserError where a number or "best" matches none,
    or where all that match are damaged. Changes nothing on disk.
    """
    if jax.process_count() == 1:
        return _find(workdir, step)
    # Process 0 alone reads and verifies the files. The others take its answer.
    found, failed = None, None
    if jax.process_index() == 0:
        try:
            found = _find(workdir, step)
        except UserError as error:
            failed = error
    code = -2 if failed else -1 if found is None else found
    code = int(multihost_utils.broadcast_one_to_all(np.int32(code)))
    if code == -2:
        raise failed or UserError("process 0 found no usable checkpoint: see its error")
    return None if code == -1 else code


def restore(workdir: Path, step: int, target: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Restore the checkpoint of `step`, directly to the shardings of `target` (a state or its shapes).

    Where the checkpoint has no moving average and `target` has one, it starts from the weights. Returns the
    state and the input pipeline's position. Raises UserError where Orbax fails to restore it.
    """
    wanted = {
        "params": _abstract({**target.trainable, **target.frozen}),
        "optimizer": _abstract({"step": target.step, "state": target.opt_state}),
        "data": {"next_step": 0, "bad": 0},
    }
    if averaged := target.ema is not None and has_average(workdir, step):
        wanted["ema"] = _abstract(target.ema)
    parts = _load(workdir, step, wanted)
    params = parts["params"]
    trainable = {path: params[path] for path in target.trainable}
    if target.ema is not None and not averaged:
        log.info("step %d was saved without an average: `train.ema` starts from its weights", step)
    restored = TrainState(
        step=parts["optimizer"]["step"],
        trainable=trainable,
        frozen={path: params[path] for path in target.frozen},
        opt_state=parts["optimizer"]["state"],
        ema=parts["ema"] if averaged else state.first_average(target, trainable),
    )
    return restored, parts["data"]


def restore_params(
    workdir: Path,
    step: int,
    target: Mapping[str, jax.ShapeDtypeStruct],
    averaged: Collection[str] = (),
) -> Params:
    """Restore only the parameters of the checkpoint of `step`, to the shardings of `target`.

    Of the paths in `averaged` it restores the moving average. Raises UserError where Orbax fails to restore
    them.
    """
    wanted = {
        "params": {path: leaf for path, leaf in target.items() if path not in averaged},
        "ema": {path: target[path] for path in averaged},
    }
    # The weights that are averaged are not read.
    parts = _load(workdir, step, {name: part for name, part in wanted.items() if part}, some=bool(averaged))
    return {path: leaf for part in parts.values() for path, leaf in part.items()}


def has_average(workdir: Path, step: int) -> bool:
    """Tell whether the checkpoint of `step` has the moving average of `train.ema`."""
    return (layout.checkpoint_dir(workdir) / str(step) / "ema").is_dir()


class CheckpointManager:
    """Save the checkpoints of one run, one at a time, and keep the newest and the best of them."""

    def __init__(self, workdir: Path, settings: config.Checkpoint, *, start: int | None):
        """Make the directory, delete what was left unfinished, and set aside checkpoints after `start`.

        The run goes on from the checkpoint of `start`. Later ones are damaged: `find` passed them over.
        """
        self._workdir, self._settings = workdir, settings
        self._directory = layout.checkpoint_dir(workdir)
        self._first = jax.process_index() == 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints", initializer=_give_way)
        self._pending: Future[None] | None = None
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(_without_late_reports())
        self._plain: epath.Path | None = None  # a path to the directory that Orbax can read
        # Made by all hosts: a network file system may be late to show what another host made.
        self._directory.mkdir(parents=True, exist_ok=True)
        if self._first:
            for path in _children(self._directory):
                unfinished = _STEP.fullmatch(path.name) and not checksums.are_there(path)
                if unfinished or _UNFINISHED.fullmatch(path.name):
                    _remove(path)
            for step in steps(workdir):
                if step > (start or 0):
                    aside = self._directory / f"{step}.damaged"
                    _remove(aside)
                    (self._directory / str(step)).rename(aside)

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except UserError as failed:
            if error is None or isinstance(error, Stopped):
                raise
            log.warning("%s", failed)  # `error` came first, and is the one that is raised
        finally:
            self._thread.shutdown()
            self._stack.close()

    def save(self, step: int, train_state: TrainState, data: dict[str, Any]) -> None:
        """Start saving; return when the arrays are copied, while the files are still being written.

        Waits first until the checkpoint before is whole. Raises UserError where a checkpoint cannot be
        written: at once, or from the next call of `check`, `wait` or `save`.
        """
        self.wait()
        parts = {
            "params": {**train_state.trainable, **train_state.frozen},
            "optimizer": {"step": train_state.step, "state": train_state.opt_state},
            "data": data,
        }
        if train_state.ema is not None:
            parts["ema"] = train_state.ema
        try:
            if self._plain is None:
                self._plain = self._stack.enter_context(paths.plain(self._directory, agreement.gather))
            path = self._plain / str(step)
            # Started in `_thread`: Orbax's threads inherit its priority. Returns once the arrays are copied.
            writing = self._thread.submit(_start_writing, path, parts).result()
        except Exception as error:  # Orbax raises many kinds
            raise self._failure(step, error) from error
        shapes = {name: [np.shape(leaf) for leaf in jax.tree.leaves(part)] for name, part in parts.items()}
        self._pending = self._thread.submit(self._finish, step, writing, path, shapes)

    def check(self) -> None:
        """Raise UserError if the last save has failed by now."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last save is whole. Raises UserError if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _finish(self, step: int, writing: Any, path: epath.Path, shapes: Shapes) -> None:
        """Wait for `writing` at `path`, verify it, write its checksums, and delete other checkpoints.

        All processes wait for the writing. Process 0 alone does the rest. Raises UserError where it fails.
        """
        try:
            _wait_for(writing)  # ends on each host once all have written their part
            if self._first:
                _check_restorable(path, shapes)
                checksums.write(self._directory / str(step))
        except Exception as error:
            raise _told(self._failure(step, error)) from error
        if self._first:
            try:
                self._delete_others()
            except (OSError, UserError) as error:
                said = f"checkpoints in {self._directory} that are not kept cannot be deleted"
                raise _told(UserError(f"{said} ({_reason(error)})")) from error

    def _failure(self, step: int, error: Exception) -> UserError:
        """Make the UserError for a checkpoint of `step` that could not be written because of `error`."""
        path = self._directory / str(step)
        return UserError(f"{path} cannot be written ({_reason(error)}); earlier checkpoints are kept")

    def _delete_others(self) -> None:
        """Delete all checkpoints but the newest and the best, and damaged ones that are replaced by now.

        The predictions of evaluations are kept for the steps whose checkpoints are.
        """
        found = steps(self._workdir)
        newest, older = found[-self._settings.keep :], found[: -self._settings.keep]
        best = _best(self._workdir)[: self._settings.keep_best] if older else []
        for step in older:
            if step not in best:
                # The checksums first, so that a half-deleted directory is not taken for a checkpoint.
                (self._directory / str(step) / checksums.SUMS).unlink()
                _remove(self._directory / str(step))
        for path in _children(self._directory):
            aside = _SET_ASIDE.fullmatch(path.name)
            if aside and int(aside[1]) <= newest[-1]:
                _remove(path)
        predictions.prune(self._workdir, steps(self._workdir))


def _told(failure: UserError) -> UserError:
    """Tell the other processes of `failure`; return it.

    They may wait for this checkpoint at a point where `check` is not called again.
    """
    liveness.tell_failed(str(failure))
    return failure


def steps(workdir: Path) -> list[int]:
    """List the steps of the finished checkpoints in ascending order."""
    return sorted(int(path.name) for path in _numbered(workdir) if checksums.are_there(path))


def _numbered(workdir: Path) -> list[epath.Path]:
    """List the directories that are called as steps are, finished or not."""
    return [path for path in _children(layout.checkpoint_dir(workdir)) if _STEP.fullmatch(path.name)]


def _children(directory: epath.Path) -> list[epath.Path]:
    """List what is in `directory`; nothing where it is not there, as an empty one in an object store."""
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []


def _remove(directory: epath.Path) -> None:
    """Delete a directory that is no checkpoint, as far as that is possible."""
    with contextlib.suppress(OSError):
        directory.rmtree(missing_ok=True)


def _best(workdir: Path) -> list[int]:
    """List the steps of the evaluated checkpoints, the one with the best top-1 or mAP first.

    See `evaluations.by_checkpoint` for those that count. Of two with the same figure the later one comes
    first.
    """
    own = evaluations.Setting.of_run(RunRecord.read(workdir))
    found = evaluations.by_checkpoint(evaluations.read(workdir), own, steps(workdir))
    return sorted(found, key=lambda step: (found[step].best_by, step), reverse=True)


def _find(workdir: Path, step: Step) -> int | None:
    """Find the checkpoint to use as `find` does, in one process."""
    saved = steps(workdir)
    if not saved and step is None:
        return None  # also where the first one was not finished
    # What is not finished is passed over as what is damaged is, with the same warning.
    saved = sorted(int(path.name) for path in _numbered(workdir))
    if isinstance(step, int):
        if step not in saved:
            known = ", ".join(map(str, saved)) or "none"
            raise UserError(f"{workdir} has no checkpoint of step {step}; it has: {known}")
        candidates = [step]
    elif step == "best":
        candidates = _best(workdir)
        if not candidates:
            raise UserError(
                f"{workdir} has no evaluated checkpoint, so `best` is undefined: leave it out to take "
                "the newest, or name a step"
            )
    else:
        candidates = saved[::-1]
    faults: dict[int, str] = {}
    for candidate in candidates:
        fault = checksums.fault(layout.checkpoint_dir(workdir) / str(candidate))
        if fault is None:
            for passed, why in faults.items():
                log.warning(
                    "the checkpoint of step %d is damaged (%s): using the one of step %d",
                    passed,
                    why,
                    candidate,
                )
            return candidate
        faults[candidate] = fault
    said = "; ".join(f"step {candidate}: {fault}" for candidate, fault in faults.items())
    remedy = "delete it to train from the start" if step is None else "choose another step"
    raise UserError(f"{layout.checkpoint_dir(workdir)} has no intact checkpoint ({said}): {remedy}")


def _load(workdir: Path, step: int, parts: dict[str, Any], *, some: bool = False) -> dict[str, Any]:
    """Load `parts` of a checkpoint by name, with all of their arrays, or with `some` those that are named.

    Raises UserError where Orbax fails.
    """
    directory = layout.checkpoint_dir(workdir)
    context = ocp.Context()
    context.pytree_options.loading.partial_load = some
    try:
        with paths.plain(directory) as path, context:
            return ocp.load_checkpointables(path / str(step), parts)
    except Exception as error:  # Orbax raises many kinds, none of which helps the user
        raise UserError(
            f"{directory / str(step)} cannot be restored ({_reason(error)}): take another step"
        ) from error


def _check_restorable(checkpoint: epath.Path, shapes: Shapes) -> None:
    """Raise ValueError where Orbax could not restore arrays of these `shapes`, by part, from `checkpoint`.

    Reads Orbax's description of the arrays and the list of their pieces, not the arrays themselves. What was
    just written is not damaged yet, but a piece may be missing or lie where Orbax does not look for it.
    """
    found = ocp.checkpointables_metadata(checkpoint).metadata
    for part, expected in shapes.items():
        arrays = jax.tree.leaves(found.get(part))
        if sorted(map(np.shape, arrays)) != sorted(expected):
            raise ValueError(
                f"`{part}` could not be restored: {len(arrays)} of its {len(expected)} arrays are there"
            )
        place = f"{checkpoint}/{part}"
        base = stores.key_values(place) if stores.is_url(place) else {"driver": "file", "path": f"{place}/"}
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        # An array is stored as its description and one piece for each cell of a regular grid.
        pieces = sum(1 + _pieces(array) for array in arrays)
        stored = len(store.list().result())
        if stored != pieces:
            raise ValueError(
                f"`{part}` could not be restored: {stored} of the {pieces} pieces of its arrays are there"
            )


def _pieces(array: Any) -> int:
    """Count the pieces that an array is stored in, from Orbax's description of it."""
    shape = np.shape(array)
    piece = array.storage_metadata.write_shape if shape else ()
    return math.prod(-(-size // part) for size, part in zip(shape, piece, strict=True))


def _give_way() -> None:
    """Lower the priority of this thread and of those it starts, where the CPU does the computing."""
    if jax.default_backend() == "cpu":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


@contextlib.contextmanager
def _without_late_reports() -> Iterator[None]:
    """Suppress TensorStore's reports to event loops of Orbax that a failed write has closed."""
    before = sys.unraisablehook

    def report(found: "sys.UnraisableHookArgs") -> None:
        if str(found.exc_value) != "Event loop is closed":
            before(found)

    sys.unraisablehook = report
    try:
        yield
    finally:
        sys.unraisablehook = before


def _start_writing(path: epath.Path, parts: dict[str, Any]) -> Any:
    """Start writing `parts` to `path`; return Orbax's handle once the arrays are copied."""
    context = ocp.Context()
    # The sharding file takes a quarter of Orbax's work and is not needed: restoring states its shardings.
    context.array_options.saving.enable_write_sharding_file = False
    # Devices share the writing of what they all have. For each slice a program is compiled.
    context.array_options.saving.min_slice_bytes_for_replica_parallel = _LEAST_SLICE
    with context:
        return ocp.save_checkpointables_async(path, parts)


def _wait_for(writing: Any) -> None:
    """Wait for what `_start_writing` returned. Raises what failed in it, at once.

    Its own `result` raises only when all threads of the writing have ended. Some may wait at a barrier for
    minutes: where a part fails here and another part on another host, no host comes to the other's barrier.
    Orbax has no public way to the outcome alone.
    """
    writing._thread_runner._future.result()
    writing.result()


def _abstract(tree: Any) -> Any:
    """Replace the arrays of `tree` by their shapes, dtypes and shardings."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _reason(error: BaseException) -> str:
    """Summarise an error of Orbax in a line, without the details that only its authors need."""
    said = re.sub(r"/proc/self/fd/\d+/", "", str(error))
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES):
        if os.strerror(number) in said:
            return os.strerror(number)
    return textwrap.shorten(said, 200) or type(error).__name__
