"""Draw what predictions say: classes, confusions, calibration, and the use of views."""

import math
from collections.abc import Sequence

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, Range1d, Span

from inti_jax.evaluation.analysis import ClassFigure, OfViews
from inti_jax.evaluation.statistics import Reliability
from inti_jax.reports.charts.chart import COLOURS, GREY, NAMED, Chart, Table, blank, capital, name_ticks
from inti_jax.reports.confusions import Confusions

_ROWS = 20  # of the table of confusions


def of_classes(classes: Sequence[ClassFigure], overall: float, metric: str) -> Chart:
    """Draw each class's accuracy with its interval, in ascending order."""
    ordered = sorted(classes, key=lambda each: (each.value, each.name))
    few = len(ordered) <= NAMED
    places = np.arange(len(ordered))
    source = ColumnDataSource(
        {
            "place": places,
            "value": [100 * each.value for each in ordered],
            "low": [100 * (each.value if each.low is None else each.low) for each in ordered],
            "high": [100 * (each.value if each.high is None else each.high) for each in ordered],
            "name": [each.name for each in ordered],
            "videos": [each.videos for each in ordered],
        }
    )
    value, interval = Range1d(-2, 102), {"color": COLOURS[0], "line_width": 3 if few else 1, "alpha": 0.35}
    average = {"line_color": GREY, "line_dash": "dotted", "line_width": 2, "location": 100 * overall}
    if few:
        plot = blank(
            height=90 + 20 * len(ordered), x_range=value, x_axis_label=f"{metric} (%)",
            y_range=Range1d(-0.7, len(ordered) - 0.3),
        )  # fmt: skip
        name_ticks(plot.yaxis[0], [each.name for each in ordered])
        plot.ygrid.visible = False
        plot.segment("low", "place", "high", "place", source=source, **interval)
        dots = plot.scatter("value", "place", source=source, size=8, color=COLOURS[0])
        plot.add_layout(Span(dimension="height", **average))
    else:
        plot = blank(
            height=320, y_range=value, y_axis_label=f"{metric} (%)",
            x_axis_label="classes, in ascending order", x_range=Range1d(-1, len(ordered)),
        )  # fmt: skip
        plot.segment("place", "low", "place", "high", source=source, **interval)
        dots = plot.scatter("place", "value", source=source, size=4, color=COLOURS[0])
        plot.add_layout(Span(dimension="width", **average))
    plot.add_tools(
        HoverTool(
            renderers=[dots],
            tooltips=[
                ("class", "@name"),
                (metric, "@value{0.0} % (@low{0.0} to @high{0.0})"),
                ("videos", "@videos"),
            ],
        )
    )
    worst, best = ordered[0], ordered[-1]
    text = (
        f"{len(ordered)} classes, from {100 * worst.value:.1f} % ({worst.name}, {worst.videos} videos) "
        f"to {100 * best.value:.1f} % ({best.name}, {best.videos} videos). "
        f"Dotted: the {100 * overall:.1f} % of all. "
    )
    text += "Lines: Wilson's 95 % intervals." if worst.low is not None else ""
    return Chart("classes", f"{capital(metric)} by class", text, plot)


def of_confusions(found: Confusions) -> Chart:
    """Draw the confusion matrix: a row for each class, darker the larger the share of its videos."""
    count = len(found.classes)
    entries, pale = found.entries, 0.08 if count <= NAMED else 0.35
    source = ColumnDataSource(
        {
            "predicted": [entry.predicted for entry in entries],
            "label": [entry.label for entry in entries],
            "videos": [entry.videos for entry in entries],
            "share": [100 * entry.share for entry in entries],
            "alpha": [pale + (1 - pale) * entry.share**0.7 for entry in entries],
            "colour": [COLOURS[entry.label != entry.predicted] for entry in entries],
            "from": [found.classes[entry.label] for entry in entries],
            "to": [found.classes[entry.predicted] for entry in entries],
        }
    )
    plot = blank(
        height=min(680, 240 + 22 * count),
        x_range=Range1d(-0.5, count - 0.5),
        y_range=Range1d(count - 0.5, -0.5),
        x_axis_label="predicted",
        y_axis_label="label",
    )
    plot.grid.visible = False
    if count <= NAMED:
        for axis in (plot.xaxis[0], plot.yaxis[0]):
            name_ticks(axis, found.classes)
        plot.xaxis.major_label_orientation = math.pi / 3
    look = {"source": source, "fill_color": "colour", "fill_alpha": "alpha", "line_color": None}
    if count <= NAMED:
        drawn = plot.rect("predicted", "label", 0.96, 0.96, **look)
    else:  # cells that are smaller than a pixel would not be seen
        drawn = plot.scatter("predicted", "label", marker="square", size=3, **look)
    plot.add_tools(
        HoverTool(
            renderers=[drawn],
            tooltips=[
                ("label", "@from"),
                ("predicted", "@to"),
                ("videos", "@videos (@share{0.0} % of the class)"),
            ],
        )
    )
    right = sum(entry.videos for entry in entries if entry.label == entry.predicted)
    errors = found.errors()
    text = f"{right} of {sum(entry.videos for entry in entries)} videos are on the diagonal (blue). "
    if errors:
        first = errors[0]
        text += (
            f"Most often confused: {first.videos} videos of {found.classes[first.label]}, taken for "
            f"{found.classes[first.predicted]} ({100 * first.share:.1f} % of the class)."
        )
    rows = [
        [
            found.classes[each.label],
            found.classes[each.predicted],
            str(each.videos),
            f"{100 * each.share:.1f}",
        ]
        for each in errors[:_ROWS]
    ]
    table = (
        Table(["label", "predicted", "videos", "% of the class"], rows, open=count > NAMED) if rows else None
    )
    return Chart("confusions", "Confusion matrix", text, plot, table)


def of_reliability(found: Reliability, what: str) -> Chart:
    """Draw how often answers are right against the confidence in them, which is `what`."""
    filled = np.flatnonzero(found.answers > 0)
    source = ColumnDataSource(
        {
            "left": 100 * found.edges[filled],
            "right": 100 * found.edges[filled + 1],
            "accuracy": 100 * found.accuracy[filled],
            "confidence": 100 * found.confidence[filled],
            "answers": found.answers[filled],
            "alpha": 0.25 + 0.75 * found.answers[filled] / found.answers.max(),
        }
    )
    plot = blank(
        height=340,
        x_range=Range1d(0, 100),
        y_range=Range1d(0, 100),
        x_axis_label="confidence (%)",
        y_axis_label="of them right (%)",
    )
    bars = plot.quad(
        left="left", right="right", bottom=0, top="accuracy", source=source,
        color=COLOURS[0], fill_alpha="alpha", line_alpha=0.8,
    )  # fmt: skip
    plot.line([0, 100], [0, 100], color=GREY, line_dash="dashed", line_width=2)
    plot.scatter("confidence", "accuracy", source=source, color=COLOURS[1], size=7)
    plot.add_tools(
        HoverTool(
            renderers=[bars],
            tooltips=[
                ("confidence", "@confidence{0.0} %"),
                ("right", "@accuracy{0.0} %"),
                ("answers", "@answers{0,0}"),
            ],
        )
    )
    gap = float(((found.confidence - found.accuracy) * found.answers)[filled].sum() / found.answers.sum())
    sure = "overconfident" if gap > 0 else "underconfident"
    text = (
        f"Expected calibration error (ECE) {100 * found.error:.1f} %, {sure} by {100 * abs(gap):.1f} points "
        f"on average, over {found.answers.sum():,} answers. Confidence is {what}. On the dashed line it is "
        "as large as the share that is right; paler bars have fewer answers."
    )
    rows = [
        [
            f"{100 * found.edges[place]:.0f} to {100 * found.edges[place + 1]:.0f}",
            f"{found.answers[place]:,}",
            f"{100 * found.confidence[place]:.1f}",
            f"{100 * found.accuracy[place]:.1f}",
        ]
        for place in filled.tolist()
    ]
    table = Table(["confidence (%)", "answers", "mean confidence (%)", "right (%)"], rows)
    return Chart("reliability", "Reliability", text, plot, table)


def of_views(found: Sequence[OfViews], metric: str) -> Chart:
    """Draw the figure against the number of views that it averages."""
    source = ColumnDataSource(
        {"x": [each.views for each in found], "y": [100 * each.value for each in found]}
    )
    plot = blank(height=340, x_axis_label="views a video", y_axis_label=f"{metric} (%)")
    plot.xaxis.ticker.min_interval = 1
    plot.line("x", "y", source=source, color=COLOURS[0], line_width=2)
    dots = plot.scatter("x", "y", source=source, color=COLOURS[0], size=8)
    plot.add_tools(
        HoverTool(renderers=[dots], mode="vline", tooltips=[("views", "@x"), (metric, "@y{0.00} %")])
    )
    text = (
        f"{100 * found[0].value:.1f} % with one view, {100 * found[-1].value:.1f} % with {found[-1].views}. "
        "Fewer views are averaged over several choices of them."
    )
    table = Table(
        ["views", f"{metric} (%)"], [[str(each.views), f"{100 * each.value:.2f}"] for each in found]
    )
    return Chart("views", f"{capital(metric)} against views", text, plot, table)
