"""Check and record the metrics and the speed of a run while it trains."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils
from jaxtyping import Array

from inti_jax.config import Config
from inti_jax.data.dataset import VideoDataset
from inti_jax.data.loading.device import DeviceBatch
from inti_jax.errors import UserError
from inti_jax.host import memory
from inti_jax.models.video import VideoModel
from inti_jax.runs import utilization
from inti_jax.runs.compilation import Compilations
from inti_jax.runs.writers.metrics_writer import MetricsWriter
from inti_jax.runs.writers.progress import Progress

log = logging.getLogger("inti_jax")

Metrics = dict[str, Array]

Result = TypeVar("Result")

# Compilations that take less time are not recorded.
_NOTABLE_SECONDS = 0.1


class TrainingError(UserError):
    """An error after which training cannot go on; earlier checkpoints stay good."""


class Speed:
    """Converter of a step's duration to videos per second and model FLOP utilisation (MFU)."""

    def __init__(self, config: Config, model: VideoModel, mesh: jax.sharding.Mesh):
        self._videos = config.train.global_batch
        macs = utilization.training_macs(model, config.model, config.data.num_frames)
        self._flops = 2 * macs * self._videos
        self._peak = utilization.peak_flops(mesh.devices.flatten().tolist())

    def figures(self, step_seconds: float) -> dict[str, float]:
        """Compute `videos_per_second`, and `mfu` where the devices' peak FLOPs are known."""
        found = {"videos_per_second": self._videos / step_seconds}
        return found if self._peak is None else found | {"mfu": self._flops / step_seconds / self._peak}


class Monitor:
    """Check and log each step's metrics one step late, so that reading them does not stall the devices."""

    def __init__(
        self,
        config: Config,
        dataset: VideoDataset,
        writer: MetricsWriter,
        progress: Progress,
        speed: Speed,
        *,
        last_step: int,
        next_step: int,
        bad: int,
    ):
        """Start after `next_step` steps, of whose clips `bad` did not decode."""
        self._config, self._dataset = config, dataset
        self._writer, self._progress, self._speed = writer, progress, speed
        self._compilations = Compilations()
        self._last_step = last_step
        self._pending: tuple[int, Metrics, Array, Mapping[int, Metrics]] | None = None
        self.bad = bad
        self._seen = next_step * config.train.global_batch
        self.restart_clock()

    def restart_clock(self, now: float | None = None) -> None:
        """Measure the duration of steps afresh from `now`, by default the current time."""
        self._since = time.perf_counter() if now is None else now
        self._steps = 0
        self._waited = 0.0
        self._compiling = 0.0

    def close(self) -> None:
        """Stop recording compilations."""
        self._compilations.close()

    def next_batch(self, batches: Iterator[DeviceBatch]) -> DeviceBatch:
        """Return the next batch, and count the time spent waiting for it as data wait."""
        asked = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - asked
        return batch

    def dispatch(self, step: int, program: Callable[..., Result], *arguments: Any) -> Result:
        """Start a program of the step. The time that its compilation takes does not count as a step's."""
        asked = time.perf_counter()
        result = program(*arguments)
        if self.note_compiled(step):
            self._compiling += time.perf_counter() - asked
        return result

    def logs(self, step: int) -> bool:
        """Tell whether the step has a record."""
        return step % self._config.train.log_every_steps == 0 or step == self._last_step

    def note_compiled(self, step: int) -> bool:
        """Write a record of each program compiled since the last call; return True if there was any."""
        found = [each for each in self._compilations.take() if each.seconds >= _NOTABLE_SECONDS]
        for each in found:
            self._writer.write(step, "compile", dataclasses.asdict(each))
            how = "loaded from the compilation cache" if each.cached else "compiled"
            log.info("step %d: %s was %s, in %.1f s", step, each.what, how, each.seconds)
        return bool(found)

    def push(
        self, step: int, metrics: Metrics, index: Array, blends: Mapping[int, Metrics] | None = None
    ) -> None:
        """Store the metrics of a step just dispatched, after reading those of the step before.

        `blends` are the figures of each compressor by the block before it, where the step has a record.
        """
        self.flush()
        self._pending = (step, metrics, index, blends or {})

    def flush(self) -> None:
        """Read, check and log the stored metrics, if there are any.

        Raises TrainingError where too many clips did not decode, or the loss or its gradient is not finite.
        """
        if self._pending is None:
            return
        step, metrics, index, blends = self._pending
        self._pending = None
        figures = {name: value.item() for name, value in jax.device_get(metrics).items()}
        self._steps += 1
        self._seen += self._config.train.global_batch
        self.bad += int(figures["bad"])
        self._check(step, figures, index)
        self._progress.advance()
        if self.logs(step):
            self._log(step, figures)
            self._log_blends(step, blends)

    def _check(self, step: int, figures: dict[str, float | int], index: Array) -> None:
        """Raise TrainingError as `flush` does; where the figures are not finite, record the batch first."""
        share = self._config.data.max_bad_share
        # The share is of at least one epoch: else a single bad clip in the first batch would be too many.
        if self.bad > share * max(self._seen, len(self._dataset)):
            raise TrainingError(
                f"step {step}: {self.bad} of the {self._seen} clips so far did not decode, more than "
                f"`data.max_bad_share` = {share} allows: `prepare` lists damaged files"
            )
        if math.isfinite(figures["loss"]) and math.isfinite(figures["grad_norm"]):
            return
        rows = multihost_utils.process_allgather(index, tiled=True)
        ids = [self._dataset.ids[row] for row in rows]
        self._writer.write(step, "fault", {"loss": repr(figures["loss"]), "ids": ids})
        named = ", ".join(ids[:16]) + (f" and {len(ids) - 16} more in metrics.jsonl" if len(ids) > 16 else "")
        raise TrainingError(
            f"step {step}: the loss is {figures['loss']} and its gradient's norm {figures['grad_norm']}; "
            "earlier checkpoints stay valid. Lower `train.learning_rate` or `train.clip_norm`. The batch: "
            f"{named}"
        )

    def _log_blends(self, step: int, blends: Mapping[int, Metrics]) -> None:
        """Write a `blends` record for each compressor; none where no clip of the batch decoded."""
        for block, metrics in blends.items():
            figures = {name: value.item() for name, value in jax.device_get(metrics).items()}
            if math.isfinite(figures["far"]):
                self._writer.write(step, "blends", {"block": block, **figures}, variant=(f"block {block}",))

    def _log(self, step: int, figures: dict[str, float | int]) -> None:
        """Write a `train` record of the steps since the last one, show it, and restart the clock."""
        now = time.perf_counter()
        elapsed = now - self._since - self._compiling
        step_seconds = elapsed / self._steps
        record = figures | {
            "bad": self.bad,
            "step_seconds": step_seconds,
            "data_wait": self._waited / elapsed,
            **self._speed.figures(step_seconds),
            "resident_bytes": memory.resident_bytes(),
            **memory.device_bytes(),
        }
        self._writer.write(step, "train", record)
        self._progress.show(
            f"loss {record['loss']:.3f}  top1 {record['top1']:.2f}  "
            f"{1000 * step_seconds:.0f} ms/step  data wait {record['data_wait']:.0%}"
            + (f"  MFU {record['mfu']:.0%}" if "mfu" in record else "")
        )
        self.restart_clock(now)
