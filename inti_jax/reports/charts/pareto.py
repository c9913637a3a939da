"""Draw what runs reach against what they cost."""

from collections.abc import Mapping, Sequence

from bokeh.models import ColumnDataSource, HoverTool, Range1d

from inti_jax.reports.charts.chart import GREY, Chart, Table, blank, capital
from inti_jax.reports.comparison import Point, front

_WIDE = 8  # costs that differ by more have a logarithmic axis


def of_runs(points: Sequence[Point], metric: str, colours: Mapping[str, str]) -> Chart:
    """Draw the runs' figures with their intervals against GMACs, and a line through those that none beats."""
    low = [point.value if point.interval is None else point.interval[0] for point in points]
    high = [point.value if point.interval is None else point.interval[1] for point in points]
    source = ColumnDataSource(
        {
            "name": [point.name for point in points],
            "gmacs": [point.gmacs for point in points],
            "value": [100 * point.value for point in points],
            "low": [100 * value for value in low],
            "high": [100 * value for value in high],
            "colour": [colours[point.name] for point in points],
        }
    )
    low_cost, high_cost = min(point.gmacs for point in points), max(point.gmacs for point in points)
    wide = high_cost > _WIDE * low_cost
    margin = 0.1 * (high_cost - low_cost) or 0.5 * high_cost
    plot = blank(
        height=380,
        x_axis_type="log" if wide else "linear",
        x_range=Range1d(low_cost / 1.3, 1.3 * high_cost)
        if wide
        else Range1d(low_cost - margin, high_cost + margin),
        x_axis_label="GMACs per view",
        y_axis_label=f"{metric} (%)",
    )
    best = front(points)
    plot.step(
        [point.gmacs for point in best], [100 * point.value for point in best],
        mode="after", color=GREY, line_dash="dashed", line_width=1.5,
    )  # fmt: skip
    plot.segment("gmacs", "low", "gmacs", "high", source=source, color="colour", line_width=3, alpha=0.35)
    dots = plot.scatter("gmacs", "value", source=source, color="colour", size=11)
    tooltips = [
        ("run", "@name"),
        (metric, "@value{0.0} % (@low{0.0} to @high{0.0})"),
        ("GMACs per view", "@gmacs{0.0000}"),
    ]
    plot.add_tools(HoverTool(renderers=[dots], tooltips=tooltips))
    named = "; ".join(f"{point.name} ({100 * point.value:.1f} % at {point.gmacs:.4g})" for point in best)
    text = (
        f"No other run is as cheap and better, or as good and cheaper, than these (dashed): {named}. "
        "Bars: 95 % intervals over the videos; they say nothing of other seeds."
    )
    rows = [
        [
            point.name,
            f"{point.gmacs:.4g}",
            f"{100 * point.value:.1f}",
            ""
            if point.interval is None
            else f"{100 * point.interval[0]:.1f} to {100 * point.interval[1]:.1f}",
        ]
        for point in points
    ]
    table = Table(["run", "GMACs per view", f"{metric} (%)", "95 % interval"], rows)
    return Chart("pareto", f"{capital(metric)} against cost", text, plot, table)
