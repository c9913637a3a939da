"""Draw the labels of a video over time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inti_jax.streaming.segment_files import clock
from inti_jax.streaming.timeline import Curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROWS = 12


def draw(curve: Curve, labels: Sequence[str], start: float, end: float, pyplot: Any) -> "Figure":
    """Draw the probabilities of the most probable labels as rows over time, for `drawing.render`."""
    found = curve.probabilities
    rows = np.argsort(-found.max(axis=0), kind="stable")[:_ROWS]
    rows = rows[np.argsort(found[:, rows].argmax(axis=0), kind="stable")]  # by when they are most probable
    figure, axes = pyplot.subplots(figsize=(10, 1.2 + 0.3 * len(rows)), layout="constrained")
    middles = (curve.seconds[1:] + curve.seconds[:-1]) / 2
    edges = np.concatenate([[start], middles, [end]])
    mesh = axes.pcolormesh(edges, np.arange(len(rows) + 1), found[:, rows].T, vmin=0, vmax=1)
    axes.set_yticks(np.arange(len(rows)) + 0.5, [labels[k] for k in rows])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda seconds, _: clock(seconds).partition(".")[0])
    figure.colorbar(mesh, label="probability")
    return figure
