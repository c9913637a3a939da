"""Measure how fast a host loads training clips of a dataset, and how the time splits into stages."""

import dataclasses
import shlex
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from inti_jax import config
from inti_jax.data import pipeline, sampling
from inti_jax.data.augmentation import augment
from inti_jax.data.codec import decode
from inti_jax.data.dataset import VideoDataset
from inti_jax.distributed import backend
from inti_jax.errors import UserError
from inti_jax.host import limits

STAGES = ("read", "decode", "augment", "transfer")


@dataclasses.dataclass(frozen=True)
class Rate:
    """The pipeline's clips a second with `workers` processes and `threads` threads in each."""

    workers: int
    threads: int
    clips_per_second: float


@dataclasses.dataclass(frozen=True)
class Bench:
    """The measurements of one host and dataset.

    `read_from` says where the shards are. `seconds` are those of a clip on one core, by stage. `bad` of the
    `clips` did not decode. `rates` are sorted, best first.
    """

    read_from: str
    clips: int
    bad: int
    batch: int
    cores: int
    seconds: dict[str, float]
    rates: list[Rate]

    @property
    def clips_per_second_per_core(self) -> float:
        """The clips a second that one core takes through all stages."""
        return 1 / sum(self.seconds.values())

    @property
    def shares(self) -> dict[str, float]:
        """The share of each stage in the time of a clip."""
        total = sum(self.seconds.values())
        return {stage: seconds / total for stage, seconds in self.seconds.items()}

    @property
    def recommended(self) -> Rate:
        """The setting with the fewest processes that is within 5 % of the fastest."""
        fast = [rate for rate in self.rates if rate.clips_per_second > 0.95 * self.rates[0].clips_per_second]
        return min(fast, key=lambda rate: (rate.workers, rate.threads))

    @property
    def batches_per_second(self) -> float:
        """The batches a second that the host loads with the recommended setting."""
        return self.recommended.clips_per_second / self.batch


def measure(dataset: VideoDataset, cfg: config.Data, *, batch: int, clips: int, seed: int = 0) -> Bench:
    """Time `clips` training clips on one thread by stage, then as many in the pipeline in each setting.

    `batch` is the host's batch size. Raises UserError if no clip decodes, or JAX has no devices to use.
    """
    backend.start()
    order = pipeline.TrainOrder(len(dataset), seed=seed, global_batch=clips, num_steps=1)
    seconds = dict.fromkeys(STAGES, 0.0)
    loaded = []
    for epoch, index, _ in (order[row] for row in range(clips)):
        rng = np.random.default_rng((seed, epoch, index))
        times = [time.perf_counter()]
        try:
            example = dataset[index]
            times.append(time.perf_counter())
            indices = sampling.clip_indices(
                example.frames, num_frames=cfg.num_frames, sampling=cfg.sampling, stride=cfg.stride, rng=rng
            )
            frames = example.frames_at(indices)
            times.append(time.perf_counter())
            clip = augment.train_clip(frames, rng, cfg)
            times.append(time.perf_counter())
        except decode.DecodeError:
            continue
        loaded.append(clip.frames)
        for stage, start, end in zip(STAGES, times, times[1:], strict=False):
            seconds[stage] += end - start
    if not loaded:
        raise UserError(
            f"none of the {clips} clips of {dataset.directory} could be decoded: look for the reason with "
            f"`python -m inti_jax.prepare --check {shlex.quote(str(dataset.directory))} --decode`"
        )
    seconds = {stage: total / len(loaded) for stage, total in seconds.items()}
    seconds["transfer"] = _transfer_seconds(np.stack(loaded[:batch]))
    cores = limits.cores()
    rates = [
        Rate(workers, threads, _pipeline_rate(dataset, cfg, workers, threads, clips, seed))
        for workers, threads in _settings(cores)
    ]
    rates.sort(key=lambda rate: -rate.clips_per_second)
    return Bench(dataset.read_from, clips, clips - len(loaded), batch, cores, seconds, rates)


def to_json(found: Bench) -> dict[str, Any]:
    """Return the measurements and the figures derived from them, JSON-able."""
    return dataclasses.asdict(found) | {
        "shares": found.shares,
        "clips_per_second_per_core": found.clips_per_second_per_core,
        "batches_per_second": found.batches_per_second,
        "recommended": dataclasses.asdict(found.recommended),
    }


def describe(found: Bench) -> str:
    """Format the measurements as lines for people."""
    lines = [f"read from {found.read_from}"]
    lines += [f"one core: {found.clips_per_second_per_core:.1f} clips/s, {found.bad} of {found.clips} bad"]
    lines += [
        f"  {stage:<9} {1000 * found.seconds[stage]:8.2f} ms a clip  {share:4.0%}"
        for stage, share in found.shares.items()
    ]
    lines.append(f"the pipeline on {found.cores} cores:")
    lines += [
        f"  data.workers={rate.workers} data.threads={rate.threads}: {rate.clips_per_second:.1f} clips/s"
        for rate in found.rates
    ]
    best = found.recommended
    lines.append(
        f"recommended: data.workers={best.workers} data.threads={best.threads}; it feeds "
        f"{found.batches_per_second:.2f} batches of {found.batch} a second, so devices whose step takes less "
        f"than {1000 / found.batches_per_second:.0f} ms will wait"
    )
    return "\n".join(lines)


def _settings(cores: int) -> Iterator[tuple[int, int]]:
    """Yield the settings to try, as the number of worker processes and of threads in each.

    They are threads alone, a worker for each core, and the same with one core left over.
    """
    yield 0, 1
    if cores > 1:
        yield 0, cores
        yield cores, 1
    if cores > 2:
        yield cores - 1, 1


def _transfer_seconds(clips: np.ndarray) -> float:
    """Time the transfer of a clip from host memory onto a device, the best of three."""
    times = []
    for _ in range(4):
        started = time.perf_counter()
        jax.block_until_ready(jax.device_put(clips, jax.local_devices()[0]))
        times.append(time.perf_counter() - started)
    return min(times[1:]) / len(clips)


def _pipeline_rate(
    dataset: VideoDataset, cfg: config.Data, workers: int, threads: int, clips: int, seed: int
) -> float:
    """Measure the pipeline's clips a second, over at least `clips` of them."""
    # Batches are small so that little is loaded ahead before the clock starts: that work is not timed.
    batch = max(8, 2 * workers)
    cfg = dataclasses.replace(cfg, workers=workers, threads=threads, prefetch=1)
    ahead, steps = 5, -(-clips // batch)  # more batches than are loaded ahead, to use those up first
    with pipeline.train_batches(
        dataset, cfg, seed=seed, global_batch=batch, num_steps=2 * ahead + steps
    ) as batches:
        for _ in range(ahead):
            next(batches)
        started = time.perf_counter()
        for _ in range(steps):
            next(batches)
        return steps * batch / (time.perf_counter() - started)
