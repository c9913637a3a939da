"""Let the module of a command be called: `inti_jax.explain` is a command, and a function in Python."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    """A module that is called as its function `_call`."""

    _call: Callable[..., Any]

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._call(*arguments, **keywords)


def make_callable(name: str, function: Callable[..., Any]) -> None:
    """Make calls of the module `name` call `function`.

    The package has the function under the module's name, until importing the module puts the module there.
    """
    module = sys.modules[name]
    module.__class__ = _CallableModule
    module._call = function  # type: ignore[attr-defined]  # now it has it
