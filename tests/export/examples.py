"""The examples of docs/export.md, by the names of their files."""

import re
from pathlib import Path
from types import SimpleNamespace

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
_BLOCK = re.compile(r'^```python title="(?P<file>\w+\.py)"\n(?P<code>(?s:.*?))^```$', re.MULTILINE)
CODE = {block["file"]: block["code"] for block in _BLOCK.finditer(PAGE)}


def module(file: str) -> SimpleNamespace:
    """Import the example as a module."""
    names: dict[str, object] = {"__name__": "example"}
    exec(compile(CODE[file], file, "exec"), names)
    return SimpleNamespace(**names)
