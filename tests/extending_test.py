"""Apply the examples of docs/extending.md to a copy of the package, and run what they say to run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()

_SECTION = re.compile(r"^## (?P<title>.+)\n(?P<text>(?s:.*?))(?=^## |\Z)", re.MULTILINE)
_BLOCK = re.compile(r'^```(?P<kind>\w+)(?: title="(?P<file>[^"]+)")?\n(?P<code>(?s:.*?))^```$', re.MULTILINE)


def apply(tree, file, code):
    """Apply a diff without line numbers: what it keeps and removes is in the file exactly once."""
    lines = code.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    text = (tree / file).read_text()
    assert text.count(before) == 1, f"{file} does not have once:\n{before}"
    (tree / file).write_text(text.replace(before, after))


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the package with all examples applied, and what they run, by section."""
    tree = tmp_path_factory.mktemp("extended")
    for name in ("inti_jax", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    runs = {}
    for section in _SECTION.finditer(PAGE):
        for block in _BLOCK.finditer(section["text"]):
            if block["kind"] == "diff":
                apply(tree, block["file"], block["code"])
            elif block["file"]:
                assert not (tree / block["file"]).exists(), block["file"]
                (tree / block["file"]).write_text(block["code"])
            else:
                runs[section["title"]] = runs.get(section["title"], "") + block["code"]
    return tree, runs


def test_the_examples_run(extended, tmp_path):
    tree, runs = extended
    assert len(runs) >= 7
    # One process for all, which imports JAX once. Each section has its own names.
    script = f"for title, code in {runs!r}.items():\n    print(title, flush=True)\n    exec(code, {{}})"
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert result.stdout.splitlines() == list(runs)


def test_the_examples_read_like_the_package(extended):
    tree, _ = extended
    written = [block["file"] for block in _BLOCK.finditer(PAGE) if block["file"]]
    for command in (["check"], ["format", "--check"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", ROOT / "pyproject.toml", *written],
            cwd=tree, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout
