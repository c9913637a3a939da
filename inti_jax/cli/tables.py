"""Format tables as plain text."""


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
