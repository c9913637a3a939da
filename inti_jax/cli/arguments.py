"""Parse arguments that commands share, such as --config with its overrides, and log to stderr."""

import argparse
import logging

from inti_jax import config
from inti_jax.cli import terminal
from inti_jax.config import Config
from inti_jax.host import stores


def add_config_argument(parser: argparse.ArgumentParser, use: str | None = None) -> None:
    """Add the argument --config; `use` says what an optional one is for and what holds without it."""
    parser.add_argument(
        "--config",
        required=use is None,
        metavar="FILE[:key=value,...]",
        help=(f"{use}; " if use else "")
        + "config file with get_config(), or the name of a recipe, and arguments to it; "
        "--config.a.b=value overrides one key with a number, true or false, a name, or several of them with "
        f"commas. Recipes: {', '.join(config.recipes())}",
    )


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `joining.joined`, for commands that run on several hosts."""
    group = parser.add_argument_group(
        "several processes", "detected on Cloud TPU, SLURM and Open MPI; elsewhere give all three"
    )
    group.add_argument("--coordinator_address", metavar="HOST:PORT", help="address where process 0 listens")
    group.add_argument("--process_count", type=int, metavar="N", help="number of processes")
    group.add_argument("--process_id", type=int, metavar="I", help="index of this process, from 0")


def parse_with_config(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Config]:
    """Parse the arguments and load the config that they name. Raises UsageError or ConfigError."""
    arguments, overrides = parse_with_overrides(parser)
    return arguments, config.load_config(arguments.config, overrides)


def parse_with_overrides(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """Parse the arguments, and collect those of the form --config.a.b=value."""
    arguments, rest = parser.parse_known_args()
    overrides = [item for item in rest if item.startswith("--config.")]
    unknown = [item for item in rest if item not in overrides]
    if unknown:
        parser.error(f"unknown argument: {unknown[0]}")
    return arguments, overrides


def add_step_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument --step, which names a checkpoint of a run."""
    parser.add_argument(
        "--step",
        type=_step,
        metavar="N|best",
        help="checkpoint of the run: that of step N, or the evaluated one with the best top-1 (default: the "
        "newest)",
    )


def add_weights_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument --weights, which chooses between the weights of a checkpoint and their average."""
    parser.add_argument(
        "--weights",
        choices=("ema", "raw"),
        help="of a run with `train.ema`: the moving average of its weights, or the weights as the last step "
        "left them (default: the average where the run has one)",
    )


def _step(text: str) -> int | str:
    if text == "best" or text.isdecimal():
        return text if text == "best" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a step nor `best`")


class _Shown(logging.Formatter):
    """A formatter that writes URLs in place of the paths that stand for them on this machine."""

    def format(self, record: logging.LogRecord) -> str:
        """Format the record as a line."""
        return stores.shown(super().format(record))


def setup_logging(process_index: int = 0) -> None:
    """Log the project's own messages to stderr, one line each; other libraries' only from warnings up.

    Of several processes the first logs everything. The others log only warnings, with their number.
    """
    handler = terminal.Log()
    prefix = f"process {process_index}: " if process_index else ""
    handler.setFormatter(_Shown(f"%(asctime)s {prefix}%(message)s", "%H:%M:%S"))
    logger = logging.getLogger("inti_jax")
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING if process_index else logging.INFO)
    logger.propagate = False
