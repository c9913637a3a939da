"""Runs `python -m inti_jax.convert` in this process."""

import logging
import sys
from pathlib import Path
from unittest import mock

from inti_jax import convert
from inti_jax.errors import run_command


def run(*arguments: str | Path) -> int:
    """The command's exit status. What it sets up for logging ends with it."""
    logger = logging.getLogger("inti_jax")
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    try:
        with mock.patch.object(sys, "argv", ["convert", *map(str, arguments)]):
            run_command(convert.main)
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
    return 0
