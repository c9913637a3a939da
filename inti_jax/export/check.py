"""Compare the outputs of a file that was written with those of the model that it is of."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from inti_jax.errors import UserError
from inti_jax.export.portable import Portable


@dataclasses.dataclass(frozen=True)
class Written:
    """The metadata of a file that was written, and the `difference` of its outputs from the model's."""

    metadata: dict[str, Any]
    difference: float


def difference(
    model: Portable, run: Callable[[UInt8[np.ndarray, "B *dims 3"]], Float[np.ndarray, "B N"]]
) -> float:
    """Compute by how much `run` differs from the model, on a few inputs of the size it was trained on.

    It is the largest difference, as a share of the model's largest output.
    """
    pixels = model.clips()
    expected = np.asarray(jax.jit(model.function)(model.params, pixels))
    return float(np.abs(run(pixels) - expected).max() / np.abs(expected).max())


def within(found: float, tolerance: float, what: str) -> None:
    """Raise UserError where the difference is above the tolerance, or no number."""
    if not found <= tolerance:  # also for NaN
        raise UserError(
            f"{what} differs from the model by {found:.1e} of its largest output, of at most {tolerance:g}: "
            "nothing was written"
        )
