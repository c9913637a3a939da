"""Runs `python -m inti_jax.convert` in this process."""

import sys
from pathlib import Path
from unittest import mock

from inti_jax import convert
from inti_jax.errors import run_command


def run(*arguments: str | Path) -> int:
    """The command's exit status."""
    with mock.patch.object(sys, "argv", ["convert", *map(str, arguments)]):
        try:
            run_command(convert.main)
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0
