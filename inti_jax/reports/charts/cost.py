"""Draw what a model costs."""

from bokeh.models import ColumnDataSource, HoverTool, Range1d

from inti_jax.reports.charts.chart import COLOURS, GREY, Chart, Table, blank
from inti_jax.reports.costs import Cost


def of_blocks(cost: Cost) -> Chart:
    """Draw the GMACs of each block, beside those without compression."""
    source = ColumnDataSource(
        {
            "block": [each.index for each in cost.blocks],
            "gmacs": [each.gmacs for each in cost.blocks],
            "uncompressed": [each.uncompressed for each in cost.blocks],
            "frames": [each.frames for each in cost.blocks],
            "tokens": [each.tokens for each in cost.blocks],
        }
    )
    plot = blank(
        height=300,
        x_axis_label="block",
        y_axis_label="GMACs per view",
        x_range=Range1d(0.3, len(cost.blocks) + 0.7),
    )
    plot.y_range.start = 0
    plot.xaxis.ticker.min_interval = 1
    ghosts = plot.vbar(
        "block",
        0.8,
        "uncompressed",
        source=source,
        fill_color=None,
        line_color=GREY,
        line_dash="dotted",
        line_width=1.5,
    )
    plot.vbar("block", 0.8, "gmacs", source=source, fill_color=COLOURS[0], fill_alpha=0.8, line_color=None)
    plot.add_tools(
        HoverTool(
            renderers=[ghosts],
            tooltips=[
                ("block", "@block"),
                ("GMACs", "@gmacs{0.0000} of @uncompressed{0.0000}"),
                ("frames x tokens", "@frames x @tokens"),
            ],
        )
    )
    text = (
        f"{cost.gmacs:.4g} GMACs per view with {cost.compression}, {100 * cost.share:.1f} % of the "
        f"{cost.uncompressed:.4g} without compression (dotted)."
    )
    rows = [
        [str(each.index), str(each.frames), str(each.tokens), f"{each.gmacs:.4g}", f"{each.uncompressed:.4g}"]
        for each in cost.blocks
    ]
    table = Table(["block", "frames", "tokens of a frame", "GMACs", "without compression"], rows)
    return Chart("cost", "GMACs by block", text, plot, table)
