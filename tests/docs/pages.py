"""Read the pages of the documentation: their blocks of code, and the commands in them."""

import importlib.util
import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "docs" / "reference" / "api.md"]

_BLOCK = re.compile(r"^```(?P<kind>\w+)(?P<rest>.*)\n(?P<code>(?s:.*?))^```$", re.MULTILINE)


class Block(NamedTuple):
    """A block of code: its language and content, and whether it is part of a file."""

    kind: str
    code: str
    of_file: bool


def blocks(page: Path) -> list[Block]:
    return [
        Block(each["kind"], each["code"], "title=" in each["rest"])
        for each in _BLOCK.finditer(page.read_text())
    ]


def commands(page: Path) -> list[list[str]]:
    """The commands of the shell's blocks, as words."""
    found = []
    for block in blocks(page):
        if block.kind == "sh":
            lines = block.code.replace("\\\n", " ").splitlines()
            found += [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if words]


def script(name):
    """A script of launch/, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "launch" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
