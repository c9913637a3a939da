"""Draw the weights by which a model's layers blended frames, over its training."""

from collections.abc import Sequence

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, LegendItem, Range1d, Span

from inti_jax.models.attribution import FAR
from inti_jax.reports.charts.chart import COLOURS, GREY, Chart, Table, blank, legend
from inti_jax.reports.curves import Blends

_ROWS = 20  # of a table, for each curve


def of_layers(found: Sequence[Blends], steps: Range1d) -> list[Chart]:
    """Draw the weights of each layer, then the shares of patches whose weights are far from equal."""
    return [*(_weights(each, steps) for each in found), _far(found, steps)] if found else []


def _weights(found: Blends, steps: Range1d) -> Chart:
    """Draw the mean weight of each frame of a group, in a band of one standard deviation to each side."""
    group = len(found.means)
    # The second of two has what the first leaves.
    frames = range(1 if group == 2 else group)
    plot = blank(height=300, x_range=steps, y_range=Range1d(0, 1), x_axis_label="step", y_axis_label="weight")
    plot.add_layout(
        Span(location=1 / group, dimension="width", line_color=GREY, line_dash="dashed", line_width=1.5)
    )
    entries, words = [], []
    for frame in frames:
        mean, std, colour = found.means[frame], found.stds[frame], COLOURS[frame % len(COLOURS)]
        source = ColumnDataSource(
            {"x": found.steps, "y": mean, "std": std, "low": mean - std, "high": mean + std}
        )
        band = plot.varea("x", "low", "high", source=source, fill_color=colour, fill_alpha=0.2)
        line = plot.line("x", "y", source=source, color=colour, line_width=2)
        dots = plot.scatter("x", "y", source=source, color=colour, size=5)
        tooltips = [("step", "@x{0,0}"), (f"frame {frame + 1}", "@y{0.000} ± @std{0.000}")]
        plot.add_tools(HoverTool(renderers=[dots], mode="vline", tooltips=tooltips))
        entries.append(LegendItem(label=f"frame {frame + 1}", renderers=[band, line, dots]))
        text = f"frame {frame + 1} of {group}: {mean[-1]:.3f} ± {std[-1]:.3f} at step {found.steps[-1]:.0f}"
        if len(mean) > 1:
            text += f", from {mean[0]:.3f} ± {std[0]:.3f} at step {found.steps[0]:.0f}"
        words.append(text)
    if len(entries) > 1:
        plot.add_layout(legend(entries), "above")
    text = (
        f"Mean weight ± standard deviation over the patches of a training batch, of {'; '.join(words)}. "
        f"{'The other frame has the rest. ' if group == 2 else ''}Dashed: an equal weight, {1 / group:.3g}."
    )
    rows = [
        [
            f"{found.steps[place]:.0f}",
            str(frame + 1),
            f"{found.means[frame, place]:.3f}",
            f"{found.stds[frame, place]:.3f}",
        ]
        for frame in range(group)
        for place in _places(found)
    ]
    table = Table(["step", "frame", "mean weight", "standard deviation"], rows)
    title = f"Weights of the layer after block {found.block}"
    return Chart(f"blends-{found.block}", title, text, plot, table)


def _far(found: Sequence[Blends], steps: Range1d) -> Chart:
    plot = blank(
        height=300,
        x_range=steps,
        y_range=Range1d(0, 100),
        x_axis_label="step",
        y_axis_label="% of the patches",
    )
    entries, words = [], []
    for number, each in enumerate(found):
        name, colour = f"after block {each.block}", COLOURS[number % len(COLOURS)]
        source = ColumnDataSource({"x": each.steps, "y": 100 * each.far})
        line = plot.line("x", "y", source=source, color=colour, line_width=2)
        dots = plot.scatter("x", "y", source=source, color=colour, size=5)
        tooltips = [("step", "@x{0,0}"), (name, "@y{0.0} %")]
        plot.add_tools(HoverTool(renderers=[dots], mode="vline", tooltips=tooltips))
        entries.append(LegendItem(label=name, renderers=[line, dots]))
        text = f"{name}: {100 * each.far[-1]:.1f} % at step {each.steps[-1]:.0f}"
        if len(each.steps) > 1:
            text += f", from {100 * each.far[0]:.1f} % at step {each.steps[0]:.0f}"
        words.append(text)
    if len(entries) > 1:
        plot.add_layout(legend(entries), "above")
    text = (
        f"Share of patches for which the weight of some frame is further than {FAR} from an equal one, "
        f"{'; '.join(words)}. A layer whose weights all stay near it averages, and does not choose."
    )
    rows = [
        [str(each.block), f"{each.steps[place]:.0f}", f"{100 * each.far[place]:.1f}"]
        for each in found
        for place in _places(each)
    ]
    table = Table(["after block", "step", "% of the patches"], rows)
    return Chart("blends-far", "Patches whose weights are far from equal", text, plot, table)


def _places(found: Blends) -> list[int]:
    """Choose some points of the curves, the first and the last among them."""
    count = len(found.steps)
    return np.linspace(0, count - 1, min(_ROWS, count)).round().astype(int).tolist()
