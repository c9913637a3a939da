"""Read config files, which are Python programs with `get_config()`, and overrides of their keys."""

import contextlib
import difflib
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

_PACKAGE = Path(__file__).parents[1]


def recipes() -> dict[str, Path]:
    """Find the config files that come with the package, by name."""
    # A wheel holds the checkout's configs/ inside the package.
    installed = _PACKAGE / "configs"
    files = sorted((installed if installed.is_dir() else _PACKAGE.parent / "configs").glob("*.py"))
    # The other files are what the recipes import.
    return {path.stem: path for path in files if "\ndef get_config(" in path.read_text(encoding="utf-8")}


def load_config(spec: str, overrides: Sequence[str] = ()) -> Config:
    """Load the config that `spec` names, `FILE` or `FILE:key=value,...`, with `--config.a.b=value` overrides.

    FILE is a path, or the name of a recipe that comes with the package.
    The value of an override is read by the type of its key: a text as it is, a boolean as True or true,
    numbers and tuples as in Python. Raises UsageError or ConfigError.
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
    except Exception as error:  # a config file is a program, which may raise anything
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
    """Split `FILE:argument`; FILE may itself contain colons.

    FILE is the longest part before a colon, or all of `spec`, that is an existing file. Where there is none,
    it is the recipe that the part before the first colon names. Raises UsageError for a name of neither.
    """
    colons = [match.start() for match in re.finditer(":", spec)]
    splits = [(spec, None), *((spec[:at], spec[at + 1 :]) for at in reversed(colons))]
    for name, argument in splits:
        # With its argument, a name may be too long for a file; os.path.isfile then returns False.
        if name and "://" not in name and os.path.isfile(path := local_path(name)):  # noqa: PTH113
            return path, argument
    name, argument = splits[-1]
    known = recipes()
    if name in known:
        return known[name], argument
    # For the message, take as FILE the longest prefix that ends in .py, else all before the first colon.
    name = next((name for name, _ in splits if name.endswith(".py")), name)
    path = local_path(name)
    if path.is_dir():
        raise UsageError(f"--config {path}: it is a directory")
    near = [path.stem] if path.stem in known else difflib.get_close_matches(path.stem, known)
    if near:
        hint = f"; did you mean the recipe {' or '.join(f'`{each}`' for each in near)}?"
    else:
        hint = f", and the recipes are {', '.join(known)}" if path.name == str(path) else ""
    raise UsageError(f"--config {path}: there is no such file{hint}")


@contextlib.contextmanager
def _importable(directory: Path) -> Iterator[None]:
    """Let a config file import the files beside it, as a script can, from any working directory."""
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))
