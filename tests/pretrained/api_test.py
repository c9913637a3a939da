"""`inti_jax.load_clip` as a program imports it."""

import subprocess
import sys


def test_naming_load_clip_imports_nothing_large():
    # Its call imports Flax, and Flax optax. No module of ours on that way imports what reads videos or
    # trains: that is a contract in pyproject.toml.
    names = (
        "jax",
        "flax",
        "optax",
        "av",
        "tensorflow_datasets",
        "grain",
        "orbax",
        "tensorboard",
        "matplotlib",
    )
    program = (
        f"import sys, inti_jax; inti_jax.load_clip; print([name for name in {names} if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"
