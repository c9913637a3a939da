"""Size, time and memory of made-up predictions: run `python -m tests.benchmarks.predictions_size`.

20,000 videos x 12 views x 400 classes: softmax of normal logits, whose spread (`--spread`) says how sure the
model is. The files of 2 are the largest; trained models are surer.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from inti_jax.runs import predictions
from inti_jax.runs.predictions import SavedPredictions


def made_up(videos: int, clips: int, crops: int, classes: int, spread: float):
    """Predictions with labels that are right for a part of the videos."""
    rng = np.random.default_rng(0)
    views = np.empty((videos, clips * crops, classes), np.float32)
    for row in views:  # one video at a time: a second array of all of them would count as memory
        logits = spread * (rng.normal(size=(1, classes)) + 0.3 * rng.normal(size=row.shape))
        row[...] = np.exp(logits - logits.max(axis=1, keepdims=True))
        row /= row.sum(axis=1, keepdims=True)
    labels = views.mean(axis=1).argmax(axis=1)
    wrong = rng.random(videos) < 0.25
    labels[wrong] = rng.integers(0, classes, wrong.sum())
    saved = SavedPredictions(
        dataset="made_up",
        sha256="0" * 64,
        split="val",
        step=1,
        weights="raw",
        clips=clips,
        crops=crops,
        classes=tuple(f"class {k}" for k in range(classes)),
        ids=tuple(f"class {label}/video_{index:011d}.mp4" for index, label in enumerate(labels)),
        index=np.arange(videos, dtype=np.int32),
        labels=labels.astype(np.int32),
        probabilities=views.mean(axis=1),
        frames=np.zeros((videos, clips * crops, 2), np.int32),
        missing=(),
    )
    return saved, views


def memory() -> float:
    """The most memory that this process has had, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.predictions_size")
    parser.add_argument("--spread", type=float, default=2.0)
    arguments = parser.parse_args()
    saved, views = made_up(20_000, 4, 3, 400, arguments.spread)
    with tempfile.TemporaryDirectory() as directory:
        for name, work in (
            ("write", lambda: predictions.write(Path(directory), saved, views)),
            ("read", lambda: predictions.read(saved.place.path(Path(directory)))),
            ("read_views", lambda: predictions.read_views(saved.place.path(Path(directory)))),
        ):
            started = time.process_time()
            work()
            print(
                f"{name:<12} {time.process_time() - started:5.1f} s of CPU, at most {memory():.2f} GB so far"
            )
        print(f"{saved.place.path(Path(directory)).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
