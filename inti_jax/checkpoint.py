"""Checkpoints of a training run. The one file that knows Orbax.

Each holds three parts: `params` (all parameters by path), `optimizer` (its state and the step count)
and `data` (the input pipeline's position). Writing is asynchronous, and a checkpoint appears under its
final name only once it is whole, so a killed run leaves the one before.
"""

import sys
import textwrap
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp

from inti_jax import run
from inti_jax.errors import UserError
from inti_jax.state import Params, TrainState


def latest_step(workdir: Path) -> int | None:
    """The step of the newest finished checkpoint in `workdir`, or None. Opens and changes nothing."""
    directory = run.checkpoint_dir(workdir)
    names = (path.name for path in directory.iterdir()) if directory.is_dir() else ()
    # One that is not finished has a longer name.
    return max((int(name) for name in names if name.isdecimal()), default=None)


class Checkpoints:
    """The checkpoints of one run, the newest `keep` of them."""

    def __init__(self, workdir: Path, *, keep: int):
        directory = run.checkpoint_dir(workdir)
        self._directory = directory
        self._checkpointer = ocp.training.Checkpointer(
            directory.absolute(),
            # The train loop decides when: what it asks for is saved.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    @classmethod
    def reading(cls, workdir: Path) -> "Checkpoints":
        """Those of a run that has ended, to read. Raises UserError where there are none."""
        if latest_step(workdir) is None:
            raise UserError(f"{workdir} holds no finished checkpoint: is it the directory of a run?")
        return cls(workdir, keep=sys.maxsize)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._checkpointer.close()

    def save(self, step: int, state: TrainState, data: dict[str, Any]) -> None:
        """Starts saving; returns when the arrays are copied, while the files are still being written."""
        parts = {
            "params": {**state.trainable, **state.frozen},
            "optimizer": {"step": state.step, "state": state.opt_state},
            "data": data,
        }
        self._checkpointer.save_checkpointables_async(step, parts)

    def restore(self, target: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint, straight to the shardings of `target` (a state or its shapes)."""
        parts = self._load(
            {
                "params": _abstract({**target.trainable, **target.frozen}),
                "optimizer": _abstract({"step": target.step, "state": target.opt_state}),
                "data": {"next_step": 0, "bad": 0},
            }
        )
        params = parts["params"]
        state = TrainState(
            step=parts["optimizer"]["step"],
            trainable={path: params[path] for path in target.trainable},
            frozen={path: params[path] for path in target.frozen},
            opt_state=parts["optimizer"]["state"],
        )
        return state, parts["data"]

    def restore_params(self, target: dict[str, jax.ShapeDtypeStruct]) -> Params:
        """The newest checkpoint's parameters alone, to the shardings of `target`."""
        return self._load({"params": target})["params"]

    def _load(self, parts: dict[str, Any]) -> dict[str, Any]:
        latest = self._checkpointer.latest
        assert latest is not None
        try:
            return self._checkpointer.load_checkpointables(latest.step, parts)
        except Exception as error:  # Orbax raises many kinds; none is of use to who runs this.
            reason = textwrap.shorten(str(error), 200)
            raise UserError(
                f"{self._directory / str(latest.step)} cannot be restored ({reason}): if it is "
                "damaged, delete it, and the one before is used"
            ) from error


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
