"""Size, time and memory of reports of made-up runs: run `python -m tests.benchmarks.report_size`.

Predictions are of Kinetics-400's size: 20,000 videos x 12 views x 400 classes. There are 10,000 records of
training. The pages have no frames, since there are no videos: those are bounded apart (`clips._MOST_BYTES`).
"""

import dataclasses
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from inti_jax.config import Config
from inti_jax.reports import writing
from inti_jax.runs import predictions
from inti_jax.runs.writers.jsonl import JsonLines
from tests.benchmarks.predictions_size import made_up, memory
from tests.configs import record, tiny

RECORDS = 10_000


def write_runs(workdirs: list[Path]) -> None:
    """Write made-up runs that agree on most videos."""
    saved, views = made_up(20_000, 4, 3, 400, 2.0)
    saved = dataclasses.replace(saved, step=10 * RECORDS)
    for seed, workdir in enumerate(workdirs):
        write_run(workdir, saved, tiny("nowhere", eval__clips=4, eval__crops=3, train__seed=seed))
        predictions.write(workdir, saved, views)
        rng = np.random.default_rng(seed)
        views *= rng.uniform(0.7, 1, (1, 1, 400)).astype(np.float32)
        views /= views.sum(axis=2, keepdims=True)
        saved = dataclasses.replace(saved, probabilities=views.mean(axis=1))


def write_run(workdir: Path, saved: predictions.SavedPredictions, settings: Config) -> None:
    made = record(settings, 400)
    dataset = dataclasses.replace(made.dataset, sha256=saved.sha256, labels=saved.classes)
    dataclasses.replace(made, dataset=dataset).write(workdir)
    writer = JsonLines(workdir, settings, None)
    rng = np.random.default_rng(settings.train.seed)
    names = ("loss", "top1", "grad_norm", "learning_rate", "step_seconds", "data_wait", "videos_per_second")
    for step in range(10, 10 * RECORDS + 1, 10):
        writer.write(step, "train", dict(zip(names, rng.random(len(names)).tolist(), strict=True)), ())
    own = {"views": 12, "clips": 4, "dataset": saved.sha256}
    writer.write(saved.step, "val", own | {"top1": 0.7, "top5": 0.9, "mean_class": 0.7}, ())
    writer.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        workdirs = [Path(directory) / name for name in ("one", "two")]
        # In a process of its own, whose memory does not count.
        child = multiprocessing.get_context("spawn").Process(target=write_runs, args=(workdirs,))
        child.start()
        child.join()
        if child.exitcode:
            sys.exit(1)
        for what, runs in (("one run", workdirs[:1]), ("two runs", workdirs)):
            wall, cpu = time.perf_counter(), time.process_time()
            writing.write(runs, Path(directory), what, timed=False)
            size = (Path(directory) / "report.html").stat().st_size / 1e6
            print(
                f"{what:<9} {size:5.2f} MB in {time.perf_counter() - wall:5.1f} s, "
                f"{time.process_time() - cpu:5.1f} s of CPU, at most {memory():.2f} GB so far"
            )


if __name__ == "__main__":
    main()
