"""Runs whose records and predictions are made up: they need no training."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from inti_jax.config import Config
from inti_jax.runs import predictions
from inti_jax.runs.predictions import SavedPredictions
from inti_jax.runs.writers.jsonl import JsonLines
from tests.configs import record, tiny

SHA256 = "0"  # of tests.configs.record


def predicted(
    videos: int = 40, classes: int = 10, clips: int = 2, seed: int = 0, **changes: Any
) -> tuple[SavedPredictions, np.ndarray]:
    """Predictions of step 4 that are right more often than not, and those of the single views."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=videos).astype(np.int32)
    logits = rng.normal(size=(videos, clips, classes)) + rng.normal(size=(videos, 1, classes))
    logits[np.arange(videos), :, labels] += 2
    views = np.exp(logits).astype(np.float32)
    views /= views.sum(axis=2, keepdims=True)
    saved = SavedPredictions(
        dataset="motion_digits",
        sha256=SHA256,
        split="val",
        step=4,
        weights="raw",
        clips=clips,
        crops=1,
        classes=tuple(f"class {k}" for k in range(classes)),
        ids=tuple(f"video {number}" for number in range(videos)),
        index=np.arange(videos, dtype=np.int32),
        labels=labels,
        probabilities=views.mean(axis=1),
        frames=np.zeros((videos, clips, 2), np.int32),
        missing=(),
    )
    return dataclasses.replace(saved, **changes), views


def _blends(settings: Config, moved: float) -> dict[str, float]:
    """The figures of a layer, by how far the first frame's mean weight is from an equal one."""
    group = settings.model.compression.group
    found = {"far": moved}
    for frame in range(1, group + 1):
        found[f"mean_{frame}"] = 1 / group + (moved if frame == 1 else -moved / (group - 1))
        found[f"std_{frame}"] = moved / 2
    return found


def run(
    workdir: Path, *, settings: Config | None = None, found: tuple[SavedPredictions, np.ndarray] | None = None
) -> Path:
    """A run of four steps, restarted after the second, with predictions of its evaluation.

    With compressors in `settings`, it has records of their weights.
    """
    saved, views = found or predicted()
    settings = settings or tiny("nowhere", eval__clips=saved.clips)
    made = record(settings, len(saved.classes))
    dataclasses.replace(made, dataset=dataclasses.replace(made.dataset, labels=saved.classes)).write(workdir)
    writer = JsonLines(workdir, settings, None)
    writer.write(1, "compile", {"what": "step", "seconds": 2.0, "cached": False}, ())
    for step in range(1, 5):
        if step == 3:
            writer.write(2, "restart", {"devices": 1, "processes": 1}, ())
        figures = {
            "loss": 3.0 - step / 2,
            "top1": step / 8,
            "grad_norm": 1.0,
            "learning_rate": 1e-3,
            "step_seconds": 0.1,
            "data_wait": 0.5,
            "videos_per_second": 80.0,
            "resident_bytes": 2**30,
        }
        writer.write(step, "train", figures, ())
        for number, block in enumerate(settings.model.compression.compresses_after):
            writer.write(step, "blends", {"block": block, **_blends(settings, step / 10 + number / 100)}, ())
    own = {"views": saved.clips * saved.crops, "clips": saved.clips, "dataset": SHA256}
    for step in (2, 4):
        writer.write(step, "val", own | {"top1": step / 8, "top5": 0.9, "mean_class": 0.4}, ())
    writer.close()
    predictions.write(workdir, saved, views)
    return workdir
