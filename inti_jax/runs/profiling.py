"""Trace some of a run's steps for TensorBoard or XProf: `--profile steps=FIRST:LAST`."""

import contextlib
import dataclasses
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from inti_jax.errors import UsageError
from inti_jax.host import paths
from inti_jax.runs import layout

log = logging.getLogger("inti_jax")


@dataclasses.dataclass(frozen=True)
class Steps:
    """Steps `first` to `last` of a run, both included, counted from 1."""

    first: int
    last: int

    @staticmethod
    def parse(text: str) -> "Steps":
        """Parse `steps=FIRST:LAST`. Raises UsageError for any other text."""
        match = re.fullmatch(r"steps=(\d+):(\d+)", text)
        if match is None:
            raise UsageError(f"--profile {text}: write it as steps=FIRST:LAST, such as steps=10:15")
        steps = Steps(int(match[1]), int(match[2]))
        if not 1 <= steps.first <= steps.last:
            raise UsageError(
                f"--profile {text}: FIRST should be at least 1, and LAST, which is traced too, at least FIRST"
            )
        return steps

    def check_within(self, start: int, end: int) -> None:
        """Raise UsageError unless a run from after step `start` up to step `end` takes all these steps."""
        if self.first <= start or self.last > end:
            left = f"trains steps {start + 1} to {end}" if start < end else f"has trained all its {end} steps"
            raise UsageError(f"--profile steps={self.first}:{self.last}: the run {left}")


class Trace:
    """Profiler trace below the run's `tensorboard/`, by process 0 alone: the others' steps are alike."""

    def __init__(self, steps: Steps | None, workdir: Path):
        self._steps = steps if jax.process_index() == 0 else None
        self._directory = layout.tensorboard_dir(workdir)
        self._running = False
        self._stack = contextlib.ExitStack()

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Mark the host's work for a step with its number in the trace, which begins at the first step."""
        if self._steps is not None and step == self._steps.first:
            self._directory.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self._stack.enter_context(paths.plain(self._directory)))
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def end_step(self, step: int, results: Any) -> None:
        """End the trace after its last step, once the step's `results` are computed."""
        if self._steps is None or step != self._steps.last:
            return
        jax.block_until_ready(results)
        self.close()
        log.info(
            "wrote a trace of steps %d to %d to %s: view it with `pip install xprof` and `xprof --logdir "
            "%s`, or with TensorBoard and its xprof plugin",
            self._steps.first,
            self._steps.last,
            self._directory / "plugins" / "profile",
            self._directory,
        )

    def close(self) -> None:
        """End the trace if it is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._stack.close()
            self._running = False
