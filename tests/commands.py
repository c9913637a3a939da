"""Call commands in this process, as a user calls them."""

import logging
import sys
from collections.abc import Callable
from unittest import mock

from inti_jax import convert as convert_command
from inti_jax import evaluate as evaluate_command
from inti_jax import plan as plan_command
from inti_jax import report as report_command
from inti_jax.host.command import run_command
from inti_jax.prepare import __main__ as prepare_command


def convert(*arguments: object) -> int:
    """Run `python -m inti_jax.convert` and return its exit status."""
    return _run(convert_command.main, "convert", arguments)


def evaluate(*arguments: object) -> int:
    """Run `python -m inti_jax.evaluate` and return its exit status."""
    return _run(evaluate_command.main, "evaluate", arguments)


def plan(*arguments: object) -> int:
    """Run `python -m inti_jax.plan` and return its exit status."""
    return _run(plan_command.main, "plan", arguments)


def prepare(*arguments: object) -> int:
    """Run `python -m inti_jax.prepare` and return its exit status."""
    return _run(prepare_command.main, "prepare", arguments)


def report(*arguments: object) -> int:
    """Run `python -m inti_jax.report` and return its exit status."""
    return _run(report_command.main, "report", arguments)


def _run(main: Callable[[], None], name: str, arguments: tuple[object, ...]) -> int:
    # What a command sets up for logging ends with it.
    logger = logging.getLogger("inti_jax")
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    try:
        with mock.patch.object(sys, "argv", [name, *map(str, arguments)]):
            run_command(main)
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
    return 0
