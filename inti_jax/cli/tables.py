"""Format tables: as plain text, as Markdown, and with colours for a terminal."""

import dataclasses
import math
import shutil
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from inti_jax.cli import terminal
from inti_jax.host.names import printable

if TYPE_CHECKING:
    from rich.table import Table as RichTable

# A cell by its row and its column, from 0.
Cell = tuple[int, int]

_BEST = "bold green"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts. `best` are the cells that stand out on a terminal."""

    headers: list[str]
    rows: list[list[str]]
    best: Collection[Cell] = frozenset()

    @property
    def text(self) -> str:
        """The table as `text_table` formats it."""
        return text_table(self.headers, self.rows)

    @property
    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [self.headers, *self.rows]
        head, *body = (f"| {' | '.join(line)} |" for line in lines)
        return "\n".join([head, "|" + "---|" * len(self.headers), *body])


def text_table(headers: list[str], cells: list[list[str]]) -> str:
    """Align cells in columns: the first column to the left, the others, which are figures, to the right."""
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    lines = [headers, ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def best(values: Sequence[float | int | None], column: int, *, lowest: bool = False) -> set[Cell]:
    """Find the cells of a column with its highest, or its lowest value; none where all values are the same.

    None and NaN stand for cells without a value.
    """
    known = {row: value for row, value in enumerate(values) if value is not None and not math.isnan(value)}
    if len(set(known.values())) < 2:
        return set()
    chosen = min(known.values()) if lowest else max(known.values())
    return {(row, column) for row, value in known.items() if value == chosen}


def for_stdout(table: Table, plain: str | None = None) -> str:
    """Format a table for stdout.

    On a terminal it is as wide as that, with the best values in colour unless NO_COLOR is set. Elsewhere it
    is `plain`, by default the table's `text`, which does not change with the reader.
    """
    if not sys.stdout.isatty():
        return table.text if plain is None else plain
    drawn = _drawn()
    for place, header in enumerate(table.headers):
        drawn.add_column(printable(header), justify="right" if place else "left", overflow="fold")
    _add(drawn, table.rows, table.best)
    return _rendered(drawn)


class Rows:
    """A table on a terminal that grows while its rows are computed.

    The first column has texts that are known before, at most half of the terminal wide. Those between it and
    the last are as wide as their headers, and the last one takes any text.
    """

    def __init__(self, headers: Sequence[str], first: Sequence[str]):
        """Start a table whose first column will have texts among `first`."""
        from rich.cells import cell_len

        longest = max(cell_len(printable(text)) for text in (headers[0], *first))
        widths = [min(longest, shutil.get_terminal_size().columns // 2), *map(len, headers[1:-1])]
        self._columns = list(zip(headers, [*widths, None], strict=True))
        self._started = False

    def add(self, rows: Sequence[Sequence[str]], best: Collection[Cell] = frozenset()) -> None:
        """Print some rows, and before the first ones the headers."""
        drawn = _drawn(headers=not self._started)
        for header, width in self._columns:
            drawn.add_column(header, width=width, overflow="fold")
        self._started = True
        _add(drawn, rows, best)
        terminal.say(_rendered(drawn))


def _drawn(*, headers: bool = True) -> "RichTable":
    """Make an empty table of Rich with a line below the headers, if it has them."""
    from rich import box  # late: only terminals need it
    from rich.table import Table as RichTable

    return RichTable(
        box=box.SIMPLE_HEAD, show_header=headers, header_style="bold", show_edge=False, pad_edge=False
    )


def _add(drawn: "RichTable", rows: Sequence[Sequence[str]], best: Collection[Cell]) -> None:
    from rich.text import Text

    for number, row in enumerate(rows):
        # As texts: in strings Rich reads brackets as its markup.
        drawn.add_row(
            *(
                Text().append(printable(text), _BEST if (number, column) in best else None)
                for column, text in enumerate(row)
            )
        )


def _rendered(drawn: "RichTable") -> str:
    """Render for stdout, without the empty lines around."""
    from rich.console import Console

    console = Console(file=sys.stdout, color_system="auto" if terminal.coloured(sys.stdout) else None)
    with console.capture() as captured:
        console.print(drawn)
    return captured.get().strip("\n")
