"""Find what a run's config changes."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from flax import traverse_util

from inti_jax.config import Config


class Change(NamedTuple):
    """A key whose value is not its default."""

    key: str
    value: str
    default: str


def changes(settings: Config) -> list[Change]:
    """List the keys of a config that differ from their defaults, in the schema's order."""
    ours, defaults = _flat(settings), _flat(Config())
    return [
        Change(key, _text(value), _text(defaults[key]))
        for key, value in ours.items()
        if value != defaults[key]
    ]


def differences(several: Sequence[Config]) -> list[tuple[str, list[str]]]:
    """List the keys in which configs differ from each other, with each one's value."""
    flat = [_flat(settings) for settings in several]
    return [
        (key, [_text(each[key]) for each in flat])
        for key in flat[0]
        if any(each[key] != flat[0][key] for each in flat)
    ]


def _flat(settings: Config) -> dict[str, Any]:
    return traverse_util.flatten_dict(dataclasses.asdict(settings), sep=".")


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return '""' if value == "" else str(value)
