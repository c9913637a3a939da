"""Checkpoints of a training run. The one file that knows Orbax.

Each holds three parts: `params` (all parameters by path), `optimizer` (its state and the step count)
and `data` (the input pipeline's position). Writing is asynchronous. A checkpoint is written under another
name and gets its own, the step's number, once it is whole and has the checksums of its files beside them:
neither Orbax nor what it writes with would notice a flipped bit in an array.
"""

import errno
import json
import logging
import os
import re
import shutil
import textwrap
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from jax.experimental import multihost_utils

from inti_jax import config, evaluations, run
from inti_jax.errors import Stopped, UserError
from inti_jax.state import Params, TrainState

log = logging.getLogger("inti_jax")

# Which checkpoint: of a step, the best of those that were evaluated, or the newest.
Step = int | Literal["best"] | None

_SUMS = "checksums.json"
# What is being written or deleted, and what was set aside; Orbax adds to the former's name while it writes.
_UNFINISHED = re.compile(r"\d+\.(partial|old)\b.*")
_SET_ASIDE = re.compile(r"(\d+)\.damaged")
# Bytes read at a time for a checksum.
_BLOCK = 2**22


def find(workdir: Path, step: Step = None) -> int | None:
    """The step of the checkpoint to use of `workdir`, the same on all hosts; None where there is none at all.

    Of the newest and the best, one that is damaged is passed over with a warning. Raises UserError where no
    checkpoint is whole, or that of `step` is not. Changes nothing.
    """
    if jax.process_count() == 1:
        return _find(workdir, step)
    # The first host's answer: it alone reads everything.
    found, failed = None, None
    if jax.process_index() == 0:
        try:
            found = _find(workdir, step)
        except UserError as error:
            failed = error
    code = -2 if failed else -1 if found is None else found
    code = int(multihost_utils.broadcast_one_to_all(np.int32(code)))
    if code == -2:
        raise failed or UserError("process 0 finds no checkpoint that can be used, and says why")
    return None if code == -1 else code


def restore(workdir: Path, step: int, target: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The checkpoint of `step`, straight to the shardings of `target` (a state or its shapes)."""
    parts = _load(
        workdir,
        step,
        {
            "params": _abstract({**target.trainable, **target.frozen}),
            "optimizer": _abstract({"step": target.step, "state": target.opt_state}),
            "data": {"next_step": 0, "bad": 0},
        },
    )
    params = parts["params"]
    state = TrainState(
        step=parts["optimizer"]["step"],
        trainable={path: params[path] for path in target.trainable},
        frozen={path: params[path] for path in target.frozen},
        opt_state=parts["optimizer"]["state"],
    )
    return state, parts["data"]


def restore_params(workdir: Path, step: int, target: dict[str, jax.ShapeDtypeStruct]) -> Params:
    """The parameters alone, to the shardings of `target`."""
    return _load(workdir, step, {"params": target})["params"]


class Checkpoints:
    """Saves the checkpoints of one run, one at a time, and keeps the newest and the best of them."""

    def __init__(self, workdir: Path, settings: config.Checkpoint, *, start: int | None):
        """The run goes on from the checkpoint of `start`: later ones are damaged, and are set aside."""
        self._workdir, self._settings = workdir, settings
        self._directory = run.checkpoint_dir(workdir).absolute()
        self._first = jax.process_index() == 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints", initializer=_give_way)
        self._pending: Future[None] | None = None
        if self._first:
            self._directory.mkdir(parents=True, exist_ok=True)
            for path in list(self._directory.iterdir()):
                if _UNFINISHED.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True)
            for step in steps(workdir):
                if step > (start or 0):
                    aside = self._directory / f"{step}.damaged"
                    shutil.rmtree(aside, ignore_errors=True)
                    (self._directory / str(step)).rename(aside)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except UserError as failed:
            if error is None or isinstance(error, Stopped):
                raise
            log.warning("%s", failed)  # and `error`, which was first, goes on
        finally:
            self._thread.shutdown()

    def save(self, step: int, state: TrainState, data: dict[str, Any]) -> None:
        """Starts saving; returns when the arrays are copied, while the files are still being written.

        Waits for the one before to be whole. Raises UserError, here or in what is called next, where one
        cannot be written.
        """
        self.wait()
        parts = {
            "params": {**state.trainable, **state.frozen},
            "optimizer": {"step": state.step, "state": state.opt_state},
            "data": data,
        }
        try:
            # In the thread whose priority Orbax's own inherit; it returns when the arrays are copied.
            writing = self._thread.submit(_start_writing, self._directory / f"{step}.partial", parts).result()
        except Exception as error:  # Orbax raises many kinds
            raise self._failure(step, error) from error
        self._pending = self._thread.submit(self._finish, step, writing)

    def check(self) -> None:
        """Raises UserError if the last save has failed by now."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Until what was saved is whole."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _finish(self, step: int, writing: Any) -> None:
        try:
            writing.result()  # on all hosts, once all have written their part
            if self._first:
                partial = self._directory / f"{step}.partial"
                _write_sums(partial)
                partial.rename(self._directory / str(step))
        except Exception as error:
            raise self._failure(step, error) from error
        if self._first:
            self._delete_others()

    def _failure(self, step: int, error: Exception) -> UserError:
        path = self._directory / str(step)
        return UserError(f"{path} cannot be written ({_reason(error)}); the checkpoints before it stay")

    def _delete_others(self) -> None:
        found = steps(self._workdir)
        newest, older = found[-self._settings.keep :], found[: -self._settings.keep]
        best = _best(self._workdir)[: self._settings.keep_best] if older else []
        for step in older:
            if step not in best:
                # Renamed first, so that no half of it is taken for a checkpoint.
                (self._directory / str(step)).rename(self._directory / f"{step}.old")
                shutil.rmtree(self._directory / f"{step}.old", ignore_errors=True)
        for path in list(self._directory.iterdir()):
            aside = _SET_ASIDE.fullmatch(path.name)
            if aside and int(aside[1]) <= newest[-1]:
                shutil.rmtree(path, ignore_errors=True)


def steps(workdir: Path) -> list[int]:
    """The steps of the finished checkpoints, in order."""
    directory = run.checkpoint_dir(workdir)
    names = (path.name for path in directory.iterdir()) if directory.is_dir() else ()
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9]\d*", name))


def _best(workdir: Path) -> list[int]:
    """The steps of the finished checkpoints that were evaluated as the run evaluates, the best one first."""
    own = evaluations.Setting.of_run(run.RunRecord.read(workdir))
    top1 = {step: each.top1 for step, each in evaluations.by_step(evaluations.read(workdir), own).items()}
    evaluated = [step for step in steps(workdir) if step in top1]
    return sorted(evaluated, key=lambda step: (top1[step], step), reverse=True)


def _find(workdir: Path, step: Step) -> int | None:
    saved = steps(workdir)
    if not saved and step is None:
        return None
    if isinstance(step, int):
        if step not in saved:
            known = ", ".join(map(str, saved)) or "none"
            raise UserError(f"{workdir} has no checkpoint of step {step}; there are: {known}")
        candidates = [step]
    elif step == "best":
        candidates = _best(workdir)
        if not candidates:
            raise UserError(f"{workdir} has no checkpoint that was evaluated, so none is the best")
    else:
        candidates = saved[::-1]
    faults: dict[int, str] = {}
    for candidate in candidates:
        fault = _fault(run.checkpoint_dir(workdir) / str(candidate))
        if fault is None:
            for passed, why in faults.items():
                log.warning(
                    "the checkpoint of step %d is damaged (%s): using that of step %d", passed, why, candidate
                )
            return candidate
        faults[candidate] = fault
    said = "; ".join(f"step {candidate}: {fault}" for candidate, fault in faults.items())
    remedy = "delete it to start again" if step is None else "choose another step"
    raise UserError(f"{run.checkpoint_dir(workdir)} has no checkpoint that is whole ({said}): {remedy}")


def _load(workdir: Path, step: int, parts: dict[str, Any]) -> dict[str, Any]:
    path = run.checkpoint_dir(workdir).absolute() / str(step)
    try:
        return ocp.load_checkpointables(path, parts)
    except Exception as error:  # Orbax raises many kinds; none is of use to who runs this.
        raise UserError(f"{path} cannot be restored ({_reason(error)})") from error


def _give_way() -> None:
    """Where the cores compute, what this thread and those it starts do comes after that."""
    if jax.default_backend() == "cpu":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _start_writing(path: Path, parts: dict[str, Any]) -> Any:
    context = ocp.Context()
    # A quarter of Orbax's work, and of no use: what is restored says where it goes.
    context.array_options.saving.enable_write_sharding_file = False
    with context:
        return ocp.save_checkpointables_async(path, parts)


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


# The files of a checkpoint, and whether they are what was written.


def _write_sums(checkpoint: Path) -> None:
    """Writes the sizes and checksums of all its files beside them."""
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    with ThreadPoolExecutor(2) as threads:
        sums = threads.map(_crc32, paths)
        files = {
            str(path.relative_to(checkpoint)): {"bytes": path.stat().st_size, "crc32": crc}
            for path, crc in zip(paths, sums, strict=True)
        }
    with (checkpoint / _SUMS).open("w") as file:
        json.dump(files, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with the files of `checkpoint`, the first thing found; or None."""
    try:
        files = json.loads((checkpoint / _SUMS).read_bytes())
        expected = {checkpoint / name: (facts["bytes"], facts["crc32"]) for name, facts in files.items()}
    except FileNotFoundError:
        return f"{_SUMS} is missing"
    except OSError as error:
        return f"{_SUMS}: {error.strerror}"
    except (AttributeError, KeyError, TypeError, ValueError):
        return f"{_SUMS} cannot be read"
    return next(_faults(checkpoint, expected), None)


def _faults(checkpoint: Path, expected: dict[Path, tuple[int, int]]) -> Iterator[str]:
    for path, (size, _) in expected.items():
        if not path.is_file():
            yield f"{path.relative_to(checkpoint)} is missing"
        elif path.stat().st_size != size:
            yield f"{path.relative_to(checkpoint)} has {path.stat().st_size} bytes instead of {size}"
    with ThreadPoolExecutor(2) as threads:
        for path, found in zip(expected, threads.map(_crc32_or_error, expected), strict=True):
            if isinstance(found, OSError):
                yield f"{path.relative_to(checkpoint)}: {found.strerror}"
            elif found != expected[path][1]:
                yield f"{path.relative_to(checkpoint)} is not what was written: its checksum differs"


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def _crc32_or_error(path: Path) -> int | OSError:
    try:
        return _crc32(path)
    except OSError as error:
        return error


def _reason(error: BaseException) -> str:
    """Why Orbax failed, without what only its authors want to know."""
    said = str(error)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES):
        if os.strerror(number) in said:
            return os.strerror(number)
    return textwrap.shorten(said, 200) or type(error).__name__
