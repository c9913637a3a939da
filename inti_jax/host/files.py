"""Write small files as a whole or not at all."""

from pathlib import Path

from inti_jax.errors import naming


def write_whole(path: Path, text: str) -> None:
    """Write the file under a temporary name, then rename it. An OSError names it."""
    partial = path.with_suffix(".partial")
    with naming(path):
        partial.write_text(text)
        partial.replace(path)
