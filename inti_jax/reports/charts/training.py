"""Draw figures by step, of one run or of several."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from bokeh.models import ColumnDataSource, GlyphRenderer, HoverTool, LegendItem, Range1d, Span
from bokeh.plotting import figure
from jaxtyping import Float

from inti_jax.reports import curves
from inti_jax.reports.charts import blends
from inti_jax.reports.charts.chart import (
    COLOURS,
    GREY,
    Chart,
    Table,
    blank,
    capital,
    legend,
    listed,
    plain,
    short,
)
from inti_jax.reports.curves import Curves

_ROWS = 20  # of the table of a curve
_SAID = 6  # curves of a chart of several runs that its text describes


class _Line(NamedTuple):
    """A curve of a chart: its label, and its values by step."""

    label: str
    steps: Float[np.ndarray, " N"]
    values: Float[np.ndarray, " N"] | None
    look: Literal["line", "pale", "thin", "marks"] = "line"

    @property
    def drawable(self) -> bool:
        """True where there is a value to draw."""
        return self.values is not None and bool(np.isfinite(self.values).any())


def of_run(found: Curves, metric: str) -> list[Chart]:
    """Draw a run's curves, whose steps zoom together. `metric` names the figure of its evaluations."""

    def line(label: str, name: str, factor: float = 1.0, look: Literal["line", "pale"] = "line") -> _Line:
        values = found.figures.get(name)
        return _Line(label, found.steps, None if values is None else factor * values, look)

    def smooth(label: str, name: str, factor: float = 1.0) -> _Line:
        return _smooth(line(label, name, factor))

    validation = [
        _Line(
            ", ".join(filter(None, ["validation", each.differences])), each.steps, 100 * each.values, "marks"
        )
        for each in found.validation
    ]
    seconds = line("step", "step_seconds", 1000.0)
    wait = found.figures.get("data_wait")
    waited = None if seconds.values is None or wait is None else seconds.values * wait
    plans = [
        (
            "loss",
            "Training loss",
            "",
            [line("each record", "loss", look="pale"), smooth("smoothed", "loss")],
        ),
        ("accuracy", capital(metric), "%", [smooth("training, smoothed", "top1", 100.0), *validation]),
        ("learning-rate", "Learning rate", "", [line("learning rate", "learning_rate")]),
        ("gradient", "Gradient norm", "", [line("gradient norm", "grad_norm")]),
        (
            "step-time",
            "Time of a step",
            "ms",
            [seconds, _Line("of it, waiting for data", found.steps, waited)],
        ),
        ("throughput", "Throughput", "videos/s", [line("videos a second", "videos_per_second")]),
        ("mfu", "Model FLOP utilisation", "%", [line("MFU", "mfu", 100.0)]),
        (
            "memory",
            "Memory",
            "GiB",
            [
                line("host, resident", "resident_bytes", 2**-30),
                line("device, in use", "hbm_bytes", 2**-30),
                line("device, peak", "hbm_peak_bytes", 2**-30),
            ],
        ),
    ]
    shared = _steps([found])
    charts = []
    for name, title, unit, lines in plans:
        lines = [each for each in lines if each.drawable]
        if not lines:
            continue
        plot = blank(
            x_range=shared, x_axis_label="step", y_axis_label=unit or title.partition(",")[0].lower()
        )
        drawn = [(each.label, _draw(plot, each, place)) for place, each in enumerate(lines)]
        if len(drawn) > 1:
            entries = [LegendItem(label=label, renderers=renderers) for label, renderers in drawn]
            plot.add_layout(legend(entries), "above")
        for step in found.restarts:
            plot.add_layout(
                Span(
                    location=step,
                    dimension="height",
                    line_dash="dashed",
                    line_color=COLOURS[3],
                    line_width=1.5,
                )
            )
        words = [_in_words(each._replace(label=capital(each.label)), unit) for each in lines]
        if found.restarts:
            words.append(f"Dashed: the run went on from step {listed(found.restarts)}.")
        chart = Chart(name, title, " ".join(words), plot, _table_of(lines, unit))
        charts.append(_with_compilations(chart, found, seconds.values) if name == "step-time" else chart)
    return charts + blends.of_layers(found.blends, shared)


def of_several(found: Mapping[str, Curves], metric: str) -> list[Chart]:
    """Draw the curves of several runs by their names, a colour for each. Steps zoom together."""
    plans = (
        ("loss", "Training loss, smoothed", "", "loss", 1.0),
        ("accuracy", f"{capital(metric)}: validation (dots), training (thin, smoothed)", "%", None, 100.0),
        ("step-time", "Time of a step", "ms", "step_seconds", 1000.0),
        ("wait", "Share of the time waiting for data", "%", "data_wait", 100.0),
        ("gradient", "Gradient norm, smoothed", "", "grad_norm", 1.0),
        ("memory", "Memory of the host", "GiB", "resident_bytes", 2**-30),
    )
    shared = _steps(list(found.values()))
    charts = []
    for name, title, unit, column, factor in plans:
        plot = blank(
            height=300,
            x_range=shared,
            x_axis_label="step",
            y_axis_label=unit or title.partition(",")[0].lower(),
        )
        words = []
        for place, (run, of) in enumerate(found.items()):
            if column is None:
                top1 = of.figures.get("top1")
                training = _Line(
                    f"{run}, training", of.steps, None if top1 is None else factor * top1, "thin"
                )
                lines = [_smooth(training)]
                for each in of.validation:
                    label = ", ".join(filter(None, [run, each.differences]))
                    lines.append(_Line(label, each.steps, factor * each.values, "marks"))
            else:
                values = of.figures.get(column)
                lines = [_Line(run, of.steps, None if values is None else factor * values)]
                if title.endswith("smoothed"):
                    lines = [_smooth(each) for each in lines]
            for line in lines:
                if line.drawable:
                    _draw(plot, line, place)
                    words.append(_in_words(line, unit))
        if words:
            more = [f"And {len(words) - _SAID} more curves."] if len(words) > _SAID else []
            charts.append(Chart(name, title, " ".join(words[:_SAID] + more), plot))
    return charts


def _steps(several: Sequence[Curves]) -> Range1d:
    """Make the range of steps of curves."""
    steps = [step for each in several for step in each.steps.tolist()]
    steps += [step for each in several for of in each.validation for step in of.steps.tolist()]
    steps += [step for each in several for of in each.blends for step in of.steps.tolist()]
    last = max([*steps, 1])
    return Range1d(-0.02 * last, 1.02 * last)


def _smooth(line: _Line) -> _Line:
    return line if line.values is None else line._replace(values=curves.smoothed(line.values))


def _draw(plot: figure, line: _Line, place: int) -> list[GlyphRenderer]:
    """Draw a curve in the colour of its place; return what is drawn."""
    source = ColumnDataSource({"x": line.steps, "y": line.values})
    colour = COLOURS[place % len(COLOURS)]
    if line.look == "pale":
        drawn = [plot.line("x", "y", source=source, color=GREY, alpha=0.55)]
    elif line.look == "thin":
        drawn = [plot.line("x", "y", source=source, color=colour, alpha=0.85)]
    else:
        drawn = [plot.line("x", "y", source=source, color=colour, line_width=2)]
        if line.look == "marks" or len(line.steps) == 1:
            drawn.append(plot.scatter("x", "y", source=source, color=colour, size=7))
    tooltips = [("step", "@x{0,0}"), (plain(line.label, 40), "@y{0,0.[000000]}")]
    plot.add_tools(HoverTool(renderers=drawn[-1:], mode="vline", tooltips=tooltips))
    return drawn


def _with_compilations(chart: Chart, found: Curves, seconds: Float[np.ndarray, " N"] | None) -> Chart:
    """Mark compilations in the chart of steps' times."""
    if not found.compilations or seconds is None:
        return chart
    source = ColumnDataSource(
        {
            "x": [each.step for each in found.compilations],
            "y": [0.9 * float(np.nanmin(seconds))] * len(found.compilations),
            "what": [each.what for each in found.compilations],
            "how": [each.how for each in found.compilations],
            "seconds": [each.seconds for each in found.compilations],
        }
    )
    marks = chart.plot.scatter(
        "x", "y", source=source, marker="triangle", size=10, color=COLOURS[2], fill_alpha=0.6
    )
    tooltips = [("step", "@x{0}"), ("program", "@what"), ("", "@how, in @seconds{0.0} s")]
    chart.plot.add_tools(HoverTool(renderers=[marks], tooltips=tooltips))
    total = sum(each.seconds for each in found.compilations)
    return dataclasses.replace(
        chart,
        text=f"{chart.text} Triangles: {len(found.compilations)} programs were compiled or loaded, in "
        f"{total:.1f} s that the steps' times leave out.",
    )


def _in_words(line: _Line, unit: str) -> str:
    """Say where a curve ends and starts, and its lowest and highest value."""
    assert line.values is not None
    present = np.flatnonzero(np.isfinite(line.values))
    first, last = present[0], present[-1]
    unit = f" {unit}" if unit else ""
    text = f"{line.label}: {short(line.values[last])}{unit} at step {line.steps[last]:.0f}"
    if first == last:
        return f"{text}."
    low, high = np.nanmin(line.values), np.nanmax(line.values)
    start = f"{short(line.values[first])} at step {line.steps[first]:.0f}"
    return f"{text}, from {start} (lowest {short(low)}, highest {short(high)})."


def _table_of(lines: Sequence[_Line], unit: str) -> Table:
    """Tabulate some points of each curve, the first and the last among them."""
    rows = []
    for line in lines:
        assert line.values is not None
        places = np.linspace(0, len(line.values) - 1, min(_ROWS, len(line.values))).round().astype(int)
        rows += [[line.label, f"{line.steps[place]:.0f}", short(line.values[place])] for place in places]
    return Table(["curve", "step", unit or "value"], rows)
