"""Values of the configuration as users write them: `--config.a.b=value`, and arguments of a config file."""

import ast
import re
import types
import typing
from typing import Any

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def read(text: str, kind: Any) -> Any:
    """Read a value of the type `kind`, a type or an annotation, from `text`.

    A string is the text itself, or a quoted one; a boolean is true, false, 1 or 0 in any case; all else is a
    Python literal. For a tuple, `a,b` are names, and one value is a tuple of one. Text that is no such value
    is given as a literal or as it is, for the caller to refuse.
    """
    possible = kinds(kind)
    if bool in possible and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    try:
        literal = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return tuple(text.split(",")) if possible == {tuple} else text
    if tuple in possible and isinstance(literal, list):
        return tuple(literal)
    if str in possible and type(literal) not in possible:
        return text  # 2024, None and (1) are good names, too
    return (literal,) if possible == {tuple} and not isinstance(literal, tuple) else literal


def items(text: str) -> list[str]:
    """Split `key=value,key=value` at the commas before a key: a tuple has commas of its own."""
    return [item for item in re.split(r",\s*(?=\w+=|$)", text.strip()) if item]


def kinds(annotation: Any) -> set[type]:
    """Give the plain types that a value of the annotation may have: `tuple` of `tuple[int, ...] | None`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return kinds(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(kinds, arguments))
    return set(map(type, arguments)) if origin is typing.Literal else {origin or annotation}
