"""Write `docs/tutorial.ipynb`, the notebook that is kept as text in `docs/notebook.md`, for ./launch/docs.sh.

Jupytext converts it. The notebook is committed, without outputs, for readers who open it where it lies.
"""

from pathlib import Path

import jupytext

_DOCS = Path(__file__).parents[1] / "docs"
TEXT, NOTEBOOK = _DOCS / "notebook.md", _DOCS / "tutorial.ipynb"


def notebook() -> str:
    """Return the notebook's file."""
    converted = jupytext.read(TEXT)
    del converted.metadata["jupytext"]
    for number, cell in enumerate(converted.cells):
        cell.id = f"cell-{number}"  # else random, and the file new each time
    return jupytext.writes(converted, fmt="ipynb")


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook())
