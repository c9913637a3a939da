"""Read values as users write them: in `--config.a.b=value`, and in arguments of a config file."""

import ast
import re
import types
import typing
from typing import Any

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def read(text: str, kind: Any) -> Any:
    """Read a value of the type `kind`, which is a type or an annotation, from `text`.

    - A string is the text itself, quoted or not.
    - A boolean is true, false, 1 or 0; case does not matter.
    - A tuple is a Python literal, or names as in `a,b`. A single value is a tuple of one.
    - Anything else is a Python literal.

    Text that is no value of the type is returned as a literal or as it is, for the caller to refuse.
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
        return text  # a name may look like a literal: 2024, None or (1)
    return (literal,) if possible == {tuple} and not isinstance(literal, tuple) else literal


def items(text: str) -> list[str]:
    """Split `key=value,key=value` at the commas before a key; commas inside a tuple do not count."""
    return [item for item in re.split(r",\s*(?=\w+=|$)", text.strip()) if item]


def kinds(annotation: Any) -> set[type]:
    """List the plain types that a value of `annotation` may have.

    For `tuple[int, ...] | None` they are `tuple` and `NoneType`; for a Literal, the types of its values.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return kinds(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(kinds, arguments))
    return set(map(type, arguments)) if origin is typing.Literal else {origin or annotation}
