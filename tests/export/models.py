"""Models to export, small and as if trained: what training starts at zero would hide what is left out."""

from collections.abc import Sequence
from typing import get_args, get_type_hints

import jax.numpy as jnp
import numpy as np

from inti_jax import config
from inti_jax.evaluation.classifier import VideoClassifier
from inti_jax.models import parameters
from inti_jax.runs import state
from inti_jax.runs.trained import Trained
from tests.configs import record, tiny

METHODS = get_args(get_type_hints(config.Model)["adaptation"])
COMPRESSIONS = get_args(get_type_hints(config.Compression)["kind"])


def pairs(shift: int) -> list[tuple[str, str]]:
    """Each method once and each compressor once; over all shifts, each method with each compressor."""
    return [(method, COMPRESSIONS[(i + shift) % len(COMPRESSIONS)]) for i, method in enumerate(METHODS)]


def trained(method: str, compression: str, **changes) -> Trained:
    """A model of five classes and clips of four frames."""
    settings = tiny(
        model__pretrained="weights.safetensors",  # which nothing reads
        model__adaptation=method,
        model__st_adapter__width=16,
        model__compression__kind=compression,
        model__compression__after=() if compression in ("none", "tome") else (1,),
        model__compression__r=2,
        data__num_frames=4,
        **changes,
    )
    run = record(settings, classes=5)
    rng = np.random.default_rng(0)
    noise = {
        path: jnp.asarray(0.1 * rng.standard_normal(shape.shape, np.float32) + path.endswith(".scale"))
        for path, shape in parameters.parameter_shapes(state.abstract_model(run)).items()
    }
    return Trained(run, noise, "raw")


def classifier(found: Trained) -> VideoClassifier:
    """Make of it what `inti_jax.load` returns."""
    return VideoClassifier(*found.for_inference(), found.record)


def videos(frames: int = 4, batch: int = 2, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (batch, frames, *size, 3), np.uint8)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a share of the largest value."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def check_printed(text: str, logits: np.ndarray, labels: Sequence[str]) -> None:
    """Check that the examples print the five likeliest labels, with their probabilities."""
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    lines = [line.split("  ") for line in text.splitlines()]
    best = np.argsort(-probabilities)[:5]
    assert [label for _, label in lines] == [labels[k] for k in best]
    np.testing.assert_allclose([float(p) for p, _ in lines], probabilities[best], atol=2e-4)
