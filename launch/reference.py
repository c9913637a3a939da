"""Write the pages of the reference that follow from the code, for ./launch/docs.sh.

Writes `docs/reference/commands.md`, from each command's `--help`; `config.md`, from the dataclasses of
`inti_jax.config.schema` and the comments beside their keys; and `changelog.md`.
"""

import contextlib
import dataclasses
import importlib
import inspect
import io
import os
import re
import sys
import tokenize
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import annotated_types
from pydantic.fields import FieldInfo

from inti_jax.__main__ import COMMANDS
from inti_jax.config import schema

_ROOT = Path(__file__).parents[1]
_BOUNDS = {
    annotated_types.Ge: ("ge", "at least"),
    annotated_types.Gt: ("gt", "above"),
    annotated_types.Le: ("le", "at most"),
    annotated_types.Lt: ("lt", "below"),
}


class Key(typing.NamedTuple):
    """A key of a config: its dotted path, type, default and meaning, as Markdown."""

    path: str
    type: str
    default: str
    meaning: str


def write(directory: Path) -> None:
    """Write all pages into `directory`."""
    pages = {"commands": commands(), "config": config(), "changelog": (_ROOT / "CHANGELOG.md").read_text()}
    for name, text in pages.items():
        (directory / f"{name}.md").write_text(text)


def commands() -> str:
    """Return the page of all commands."""
    parts = [
        "# Commands\n",
        "`inti-jax NAME` and `python -m inti_jax.NAME` are the same; `inti-jax train` is "
        "`python -m inti_jax.main`. A user's mistake ends a command with one line and exit status 1 or 2.\n",
    ]
    for name, (_, does) in COMMANDS.items():
        parts.append(f"## {name}\n\n{does[0].upper()}{does[1:]}.\n\n```text\n{help_of(name)}\n```\n")
    return "\n".join(parts)


def help_of(name: str) -> str:
    """Return what `--help` of a command prints, 90 columns wide."""
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [name, "--help"]),
        mock.patch.dict(os.environ, COLUMNS="90", NO_COLOR="1"),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        importlib.import_module(f"inti_jax.{COMMANDS[name][0]}").main(f"inti-jax {name}")
    return printed.getvalue().rstrip()


def config() -> str:
    """Return the page of all keys of a config."""
    parts = [
        "# Config keys\n",
        "A config is a Python file with `get_config`, such as those in `configs/`. On the command line, "
        "`--config.train.steps=100` sets the key `train.steps`. An unknown key, a wrong type or an "
        "impossible combination is an error that names the key, the value and what would be valid.\n",
    ]
    for path, section in sections("", schema.Config):
        about = _markdown(inspect.getdoc(section) or "")
        own = list(keys(path, section))
        if own:
            parts.append(f"## {path}\n\n{about}\n")
        for key in own:
            parts.append(f"### {key.path}\n\n{key.meaning}\n\nType: {key.type}. Default: `{key.default}`.\n")
    return "\n".join(parts)


def sections(path: str, section: type) -> Iterator[tuple[str, type]]:
    """Yield each section of a config with its dotted path, before the sections in it."""
    yield path, section
    for name, annotation in typing.get_type_hints(section).items():
        if dataclasses.is_dataclass(annotation):
            yield from sections(f"{path}.{name}".lstrip("."), typing.cast(type, annotation))


def keys(path: str, section: type) -> Iterator[Key]:
    """Yield the keys that a section has itself."""
    hints = typing.get_type_hints(section, include_extras=True)
    said = _comments(section)
    for field in dataclasses.fields(section):
        if not dataclasses.is_dataclass(typing.get_type_hints(section)[field.name]):
            yield Key(
                f"{path}.{field.name}",
                _type(hints[field.name]),
                _shown(field.default),
                _markdown(said[field.name]),
            )


def _shown(default: typing.Any) -> str:
    """Write a default as one types it on the command line, and an empty text as `""`."""
    return default or '""' if isinstance(default, str) else repr(default)


def _type(annotation: typing.Any) -> str:
    """Describe a type in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return ", ".join([_type(arguments[0]), *_bounds(arguments[1:])])
    if origin is typing.Literal:
        return "one of " + ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"tuple of: {_type(arguments[0])}"
        return f"({'; '.join(map(_type, arguments))})"
    if origin in (typing.Union, types.UnionType):
        return "; or ".join(map(_type, arguments))
    return f"{annotation.__name__}"


def _bounds(metadata: tuple[typing.Any, ...]) -> Iterator[str]:
    for found in metadata:
        for bound in found.metadata if isinstance(found, FieldInfo) else [found]:
            attribute, words = _BOUNDS[type(bound)]
            yield f"{words} {getattr(bound, attribute):g}"


def _comments(section: type) -> dict[str, str]:
    """Return what the comments above and behind each key of a section say."""
    lines = inspect.getsource(section).splitlines()
    comments = {}
    for token in tokenize.generate_tokens(iter([f"{line}\n" for line in lines]).__next__):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
    found = {}
    for number, line in enumerate(lines, start=1):
        if match := re.match(r"    (\w+): ", line):
            above, before = [], number - 1
            while before in comments and lines[before - 1].lstrip().startswith("#"):
                above.insert(0, comments[before])
                before -= 1
            last = number
            while last not in comments and last < len(lines) and lines[last].startswith("     "):
                last += 1
            behind = [comments[last]] if last in comments and last not in range(before, number) else []
            found[match[1]] = " ".join([*above, *behind])
    return found


def _markdown(text: str) -> str:
    """Turn the words of a docstring or a comment into Markdown."""
    text = re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    text = re.sub(r"\s*\bRead by\s[\w/.,\s]*?\.py\.(?=\s|$)", "", text).strip()  # for who reads the code
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", ":")) or not text else f"{text}."


if __name__ == "__main__":
    write(_ROOT / "docs" / "reference")
