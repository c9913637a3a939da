"""Adapt CLIP image transformers to video, with InTI layers that blend neighbouring frames between blocks."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inti_jax.evaluation.classifier import load as load
    from inti_jax.evaluation.explanation import explain as explain
    from inti_jax.pretrained.api import load_clip as load_clip
    from inti_jax.pretrained.api import load_tower as load_tower
    from inti_jax.streaming.engine import stream as stream

__all__ = ["explain", "load", "load_clip", "load_tower", "stream"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported on first use, so that a command's --help does not wait for JAX.
    if name == "explain":
        from inti_jax.evaluation.explanation import explain

        return explain
    if name == "load":
        from inti_jax.evaluation.classifier import load

        return load
    if name == "load_clip":
        from inti_jax.pretrained.api import load_clip

        return load_clip
    if name == "load_tower":
        from inti_jax.pretrained.api import load_tower

        return load_tower
    if name == "stream":
        from inti_jax.streaming.engine import stream

        return stream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
