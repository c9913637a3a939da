"""Call commands in this process, as a user calls them."""

import contextlib
import importlib
import io
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from unittest import mock

from inti_jax import __main__ as program
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


def call(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m inti_jax.MODULE`: its exit status, and what it printed.

    A process of its own would import JAX again, which takes longer than most commands.
    """
    names = {name.removesuffix(".__main__"): name for name, _ in program.COMMANDS.values()}
    main = importlib.import_module(f"inti_jax.{names[module]}").main
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = _run(main, module, arguments)
    return subprocess.CompletedProcess([module, *map(str, arguments)], status, out.getvalue(), err.getvalue())


def _run(main: Callable[[], None], name: str, arguments: tuple[object, ...]) -> int:
    # What a command sets up for logging and signals ends with it.
    terminated = signal.getsignal(signal.SIGTERM)
    logger = logging.getLogger("inti_jax")
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    try:
        with mock.patch.object(sys, "argv", [name, *map(str, arguments)]):
            run_command(main)
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        signal.signal(signal.SIGTERM, terminated)
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
    return 0
