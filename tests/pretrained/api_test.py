"""`inti_jax.load_clip` as a program imports it."""

import subprocess
import sys


def test_load_clip_imports_nothing_that_reads_videos_or_trains():
    # flax.nnx imports optax itself; that no module of ours does is a contract in pyproject.toml.
    names = ("av", "tensorflow_datasets", "grain", "array_record", "orbax", "tensorboard", "matplotlib")
    program = (
        f"import sys, inti_jax; inti_jax.load_clip; print([name for name in {names} if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"
