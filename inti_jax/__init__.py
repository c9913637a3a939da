"""Adapt CLIP image transformers to video, with InTI layers that blend neighbouring frames between blocks."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inti_jax.evaluation.classifier import load as load
    from inti_jax.evaluation.explanation import explain as explain
    from inti_jax.pretrained.api import load_clip as load_clip
    from inti_jax.pretrained.api import load_tower as load_tower
    from inti_jax.streaming.engine import stream as stream

__all__ = ["explain", "load", "load_clip", "load_tower", "stream"]
__version__ = "0.1.0"


_MODULES = {
    "explain": "inti_jax.evaluation.explanation",
    "load": "inti_jax.evaluation.classifier",
    "load_clip": "inti_jax.pretrained.api",
    "load_tower": "inti_jax.pretrained.api",
    "stream": "inti_jax.streaming.engine",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, so that a command's --help does not wait for JAX.
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
