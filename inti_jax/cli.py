"""What the commands share: reading --config with its overrides, and logging to stderr."""

import argparse
import contextlib
import functools
import logging
import os
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from inti_jax import config, config_text
from inti_jax.config import Config
from inti_jax.errors import UsageError, UserError
from inti_jax.paths import local_path


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:key=value,...]",
        help="a file with get_config(), and arguments to it; --config.a.b=value overrides one key, where a "
        "value is a number, true or false, a name, or several with commas",
    )


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `distributed.joined`, for commands that run on several hosts."""
    group = parser.add_argument_group(
        "several processes", "found by themselves on Cloud TPU, SLURM and Open MPI; elsewhere give all three"
    )
    group.add_argument("--coordinator_address", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--process_count", type=int, metavar="N", help="how many processes there are")
    group.add_argument("--process_id", type=int, metavar="I", help="which of them this is, from 0")


def parse_with_config(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Config]:
    """The arguments, and the config they name. Raises UsageError or ConfigError."""
    arguments, overrides = parse_with_overrides(parser)
    return arguments, load_config(arguments.config, overrides)


def parse_with_overrides(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """The arguments, and those of the form --config.a.b=value."""
    arguments, rest = parser.parse_known_args()
    overrides = [item for item in rest if item.startswith("--config.")]
    unknown = [item for item in rest if item not in overrides]
    if unknown:
        parser.error(f"unknown argument: {unknown[0]}")
    return arguments, overrides


def add_step_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--step",
        type=_step,
        metavar="N|best",
        help="which checkpoint of a run: that of step N, or the best by top-1 of those that were evaluated "
        "(default: the newest)",
    )


def _step(text: str) -> int | str:
    if text == "best" or text.isdecimal():
        return text if text == "best" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a step nor `best`")


def load_config(spec: str, overrides: Sequence[str] = ()) -> Config:
    """The config of `FILE` or `FILE:key=value,...`, with `--config.a.b=value` overrides.

    A value is read by the type of its key: a text as it is, True or true, numbers and tuples as in Python.
    Raises UsageError or ConfigError.
    """
    path, argument = _file_and_argument(spec)
    try:
        with _importable(path.resolve().parent):
            get_config = runpy.run_path(str(path)).get("get_config")
            if get_config is None:
                raise UsageError(f"--config {path}: it does not define get_config()")
            values = (get_config() if argument is None else get_config(argument)).to_dict()
    except UserError:
        raise
    except Exception as error:  # anything may be raised by a config file, which is a program
        reason = " ".join(str(error).split())
        raise UsageError(f"--config {spec}: {type(error).__name__}: {reason}") from error
    for override in overrides:
        match = re.fullmatch(r"--config\.([\w.]+)=(.*)", override, re.DOTALL)
        if match is None:
            raise UsageError(f"{override}: write it as --config.section.key=value")
        kind = config.type_of(match[1])
        *sections, key = match[1].split(".")
        section = functools.reduce(lambda outer, name: outer.setdefault(name, {}), sections, values)
        section[key] = config_text.read(match[2], kind)
    return config.from_dict(values)


def _file_and_argument(spec: str) -> tuple[Path, str | None]:
    """Split `FILE:argument`, where FILE may have colons of its own: the longest that is a file counts.

    Raises UsageError where there is none.
    """
    colons = [match.start() for match in re.finditer(":", spec)]
    splits = [(spec, None), *((spec[:at], spec[at + 1 :]) for at in reversed(colons))]
    for name, argument in splits:
        # An argument may be longer than a file's name can be.
        if name and "://" not in name and os.path.isfile(path := local_path(name)):  # noqa: PTH113
            return path, argument
    # What was meant by FILE: what ends as one, else all before the first colon.
    name = next((name for name, _ in splits if name.endswith(".py")), splits[-1][0])
    path = local_path(name)
    raise UsageError(
        f"--config {path}: " + ("it is a directory" if path.is_dir() else "there is no such file")
    )


@contextlib.contextmanager
def _importable(directory: Path) -> Iterator[None]:
    """Meanwhile a config file can import its neighbours, from wherever it is called, as a script can."""
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))


def setup_logging(process_index: int = 0) -> None:
    """The project's own messages to stderr, one line each; other libraries' from warnings up.

    Of several processes the first says everything, the others warnings alone, with their number.
    """
    handler = logging.StreamHandler()
    prefix = f"process {process_index}: " if process_index else ""
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(message)s", "%H:%M:%S"))
    logger = logging.getLogger("inti_jax")
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING if process_index else logging.INFO)
    logger.propagate = False
