"""Describe a chart and its text alternative, and what all charts share.

Charts of one page share a document, so that curves zoom together. Colours of text and lines that depend on
the reader's scheme, light or dark, are set by `charts.js`.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

from bokeh.document import Document
from bokeh.models import (
    BoxZoomTool,
    FixedTicker,
    Legend,
    LegendItem,
    PanTool,
    ResetTool,
    SaveTool,
    WheelZoomTool,
)
from bokeh.plotting import figure
from bokeh.resources import Resources

# Each is told from a white and from a dark ground.
COLOURS = ("#2f7ed8", "#e06c00", "#2a9d6f", "#b0569f", "#a37b1f", "#d0464b", "#5c7cfa", "#12908e", "#7a8a3a")
GREY = "#858b94"

# Classes whose names an axis has room for.
NAMED = 60
FONT = "system-ui, sans-serif"


@dataclasses.dataclass(frozen=True)
class Table:
    """The numbers of a chart, which the page shows on demand or, where it is `open`, at once."""

    headers: list[str]
    rows: list[list[str]]
    open: bool = False


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart; `name` is that of its element, and `text` says in words what the chart shows."""

    name: str
    title: str
    text: str
    plot: figure
    table: Table | None = None


def document(charts: Sequence[Chart]) -> dict[str, Any]:
    """Make the value, of what JSON has, that `charts.js` draws charts from."""
    shared = Document()
    with shared.models.freeze():  # else all models are looked for again after each
        for chart in charts:
            shared.add_root(chart.plot)
    return {
        "document": shared.to_json(deferred=False),
        "roots": {chart.plot.id: chart.name for chart in charts},
    }


def library() -> str:
    """Return BokehJS, without its widgets, tables and WebGL."""
    return "\n".join(Resources(mode="inline", components=["bokeh"], log_level="error").js_raw)


def plain(text: str, most: int = 24) -> str:
    """Shorten a text for an axis, and break what Bokeh would take for the delimiters of a formula."""
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    for delimiter in ("$$", "\\(", "\\["):
        text = text.replace(delimiter, f"{delimiter[0]}\u200b{delimiter[1]}")
    return text


def blank(*, height: int = 260, **settings: Any) -> figure:
    """Make an empty chart that is as wide as its place, with the tools to zoom."""
    zoom = BoxZoomTool()
    plot = figure(
        height=height,
        sizing_mode="stretch_width",
        tools=[zoom, PanTool(), WheelZoomTool(), ResetTool(), SaveTool()],
        toolbar_location="above",
        active_drag=zoom,
        active_scroll=None,
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_color=None,
        min_border=0,
        min_border_right=12,
        **settings,
    )
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.axis.axis_label_text_font = plot.axis.major_label_text_font = FONT
    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.axis_label_text_font_size = plot.axis.major_label_text_font_size = "12px"
    plot.axis.minor_tick_line_color = None
    return plot


def legend(entries: Sequence[LegendItem]) -> Legend:
    """Make the legend of a chart's few curves, which hides a curve that is clicked."""
    return Legend(
        items=list(entries),
        orientation="horizontal",
        click_policy="hide",
        border_line_width=0,
        background_fill_alpha=0,
        padding=0,
        margin=0,
        spacing=12,
        label_text_font=FONT,
        label_text_font_size="12px",
    )


def name_ticks(axis: Any, names: Sequence[str]) -> None:
    """Put names at the places 0, 1, ... of an axis."""
    axis.ticker = FixedTicker(ticks=list(range(len(names))))
    axis.major_label_overrides = {place: plain(name, 20) for place, name in enumerate(names)}
    if len(names) > 30:
        axis.major_label_text_font_size = "10px"


def capital(text: str) -> str:
    """Write the first letter large: mAP stays as it is."""
    return text if text[1:2].isupper() else f"{text[:1].upper()}{text[1:]}"


def short(value: float) -> str:
    """Write a number with four digits."""
    return "-" if not math.isfinite(value) else f"{value:.4g}"


def listed(numbers: Sequence[int], most: int = 8) -> str:
    """List some numbers in words."""
    first = ", ".join(map(str, itertools.islice(numbers, most)))
    return first if len(numbers) <= most else f"{first} and {len(numbers) - most} more"
