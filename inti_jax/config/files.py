"""Read config files, which are Python programs with `get_config()`, and overrides of their keys."""

import contextlib
import functools
import os
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from inti_jax.config import literals
from inti_jax.config.parse import from_dict, type_of
from inti_jax.config.schema import Config
from inti_jax.errors import UsageError, UserError
from inti_jax.host.paths import local_path


def load_config(spec: str, overrides: Sequence[str] = ()) -> Config:
    """Read the config of `FILE` or `FILE:key=value,...`, with `--config.a.b=value` overrides.

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
        kind = type_of(match[1])
        *sections, key = match[1].split(".")
        section = functools.reduce(lambda outer, name: outer.setdefault(name, {}), sections, values)
        section[key] = literals.read(match[2], kind)
    return from_dict(values)


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
    """Let a config file import its neighbours, from wherever it is called, as a script can."""
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))
