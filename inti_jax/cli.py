"""What the commands share: reading --config with its overrides, and logging to stderr."""

import argparse
import logging
import re
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from inti_jax import config
from inti_jax.config import Config
from inti_jax.errors import UsageError


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:key=value,...]",
        help="a file with get_config(), and arguments to it; --config.a.b=value overrides one key",
    )


def parse_with_config(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Config]:
    """The arguments, and the config they name. Raises UsageError or ConfigError."""
    arguments, rest = parser.parse_known_args()
    overrides = [item for item in rest if item.startswith("--config.")]
    unknown = [item for item in rest if item not in overrides]
    if unknown:
        parser.error(f"unknown argument: {unknown[0]}")
    return arguments, load_config(arguments.config, overrides)


def load_config(spec: str, overrides: list[str]) -> Config:
    """The config of `FILE` or `FILE:key=value,...`, with `--config.a.b=value` overrides."""
    path = Path(spec.partition(":")[0])
    if not path.is_file():
        raise UsageError(f"--config {path}: there is no such file")
    for override in overrides:
        match = re.fullmatch(r"--config\.([\w.]+)=(.*)", override, re.DOTALL)
        if match is None:
            raise UsageError(f"{override}: write it as --config.section.key=value")
        config.check_key(match[1])
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    try:
        values(["", f"--config={spec}", *overrides])
        raw = values["config"].value
    except UsageError:
        raise
    except Exception as error:  # anything may be raised by a config file, which is a program
        raise UsageError(f"--config {spec}: {type(error).__name__}: {_last_line(error)}") from error
    return config.parse(raw)


def setup_logging() -> None:
    """The project's own messages to stderr, one line each; other libraries' from warnings up."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("inti_jax")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else ""
