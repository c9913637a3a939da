"""Write a model as a StableHLO program beside its weights, in one zip file that JAX alone reads and runs.

The members are `metadata.json`, `program.bin`, which is what `jax.export` serialises, and a NumPy array for
each weight, `weights/PATH.npy`. None needs pickles.

The weights are arguments of the program and not constants in it. So the program stays small, weights are not
compiled, and they are in memory once. One program runs on CPUs, NVIDIA GPUs and TPUs, and takes any batch and
any number of frames that the model takes.
"""

import json
from pathlib import Path

import jax
import numpy as np
from jax import export
from jaxtyping import Array, Float, UInt8

from inti_jax.export import check
from inti_jax.export.check import Written
from inti_jax.export.portable import Portable
from inti_jax.host import archives
from inti_jax.models.parameters import Params

FORMAT, VERSION = "inti_jax.stablehlo", 1
SUFFIX = ".zip"
PLATFORMS = ("cpu", "cuda", "tpu")
# Largest difference to the model, as a share of its largest output. Both are XLA's programs of one function.
TOLERANCE = 1e-4


def write(path: Path, model: Portable) -> Written:
    """Write the file once its program has given what the model gives.

    Raises UserError where they differ by more than `TOLERANCE`.
    """
    # NumPy has no bfloat16 of its own; float32 holds the same numbers.
    weights = {name: np.asarray(value, np.float32) for name, value in model.params.items()}
    program = _program(model)
    call = jax.jit(export.deserialize(program).call)
    found = check.difference(model, lambda pixels: np.asarray(call(weights, pixels)))
    check.within(found, TOLERANCE, f"{path}: the program")
    metadata = {"format": FORMAT, "format_version": VERSION, "platforms": PLATFORMS, **model.metadata()}
    with archives.written(path) as archive:
        for name, content in (
            ("metadata.json", json.dumps(metadata, indent=2).encode()),
            ("program.bin", program),
        ):
            with archive.open(name, "w") as member:
                member.write(content)
        for name in sorted(weights):
            archives.add(archive, f"weights/{name}", weights[name])
    return Written(metadata, found)


def _program(model: Portable) -> bytearray:
    """Lower the model for all platforms, with symbols for the batch and the frames."""
    dtypes = {name: value.dtype for name, value in model.params.items()}

    def function(weights: Params, pixels: UInt8[Array, "B *dims 3"]) -> Float[Array, "B N"]:
        return model.function({name: weights[name].astype(dtypes[name]) for name in weights}, pixels)

    frames = "frames" if model.multiple == 1 else f"{model.multiple}*groups"
    shape = export.symbolic_shape(", ".join(map(str, model.shape("batch", frames))))
    shapes = {name: jax.ShapeDtypeStruct(value.shape, np.float32) for name, value in model.params.items()}
    lowered = export.export(jax.jit(function), platforms=PLATFORMS)
    return lowered(shapes, jax.ShapeDtypeStruct(shape, np.uint8)).serialize()
