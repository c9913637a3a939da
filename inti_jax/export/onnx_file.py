"""Write a model as an ONNX file, which is kept only if ONNX Runtime computes with it what the model gives.

The library jax2onnx converts the function's trace; see docs/export.md for how it is installed.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from inti_jax.errors import UserError
from inti_jax.export import check
from inti_jax.export.check import Written
from inti_jax.export.portable import Portable
from inti_jax.pretrained.clip_file import replacing

FORMAT, VERSION = "inti_jax.onnx", 1
SUFFIX = ".onnx"
# Largest difference to the model in float32, as a share of its largest output.
TOLERANCES = {"float32": 1e-4, "float16": 2e-2}
_OPSET = 18  # runtimes of 2023 read it
# What stays float32 in float16: sums, and what ONNX Runtime has on no CPU.
_WHOLE = ("LayerNormalization", "Softmax", "ReduceMean", "ReduceSum", "Sqrt", "LpNormalization", "ScatterND")
_LARGEST = 2**31 - 1  # bytes of a message of protobuf, which a file is
_INSTALL = 'pip install "inti_jax[onnx]" && pip install --no-deps jax2onnx==0.17.1'


def write(path: Path, model: Portable, dtype: Literal["float32", "float16"] = "float32") -> Written:
    """Write the file with weights of `dtype`, once ONNX Runtime has run it.

    Raises UserError where a library is not installed or cannot convert the model, where the file would be too
    large, and where its outputs differ from the model's by more than `TOLERANCES`.
    """
    size = sum(np.dtype(np.float32).itemsize * value.size for value in model.params.values())
    if size > _LARGEST:
        raise UserError(
            f"{path}: the weights take {size / 1e9:.1f} GB in float32, and an ONNX file has at most 2.1: use "
            "--to stablehlo"
        )
    jax2onnx, onnxruntime = _libraries()
    proto = _converted(jax2onnx, model)
    if dtype == "float16":
        proto = _halved(proto)
    metadata = {"format": FORMAT, "format_version": VERSION, **_metadata(model, dtype)}
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        del proto
        with _explained(f"{path}: ONNX Runtime cannot load {model.name}"):
            session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])

        def run(pixels: UInt8[np.ndarray, "B *dims 3"]) -> Float[np.ndarray, "B N"]:
            parts = (pixels[:1], pixels[1:])  # batches of two sizes
            with _explained(f"{path}: ONNX Runtime cannot run {model.name}"):
                return np.concatenate([session.run(None, {model.input: part})[0] for part in parts])

        found = check.difference(model, run)
        check.within(found, TOLERANCES[dtype], f"{path}: what ONNX Runtime computes")
    return Written(metadata, found)


def _halved(proto: Any) -> Any:
    """Convert a graph to float16, but for its inputs and outputs, and the kinds of nodes in `_WHOLE`."""
    from onnxruntime.transformers import float16

    whole = [*float16.DEFAULT_OP_BLOCK_LIST, *_WHOLE]
    with _quiet():
        return float16.convert_float_to_float16(
            proto, keep_io_types=True, disable_shape_infer=True, op_block_list=whole
        )


def _metadata(model: Portable, dtype: str) -> dict[str, Any]:
    """Give the model's metadata with its number of frames, which is fixed in the file, and its type."""
    facts = model.metadata()
    facts["model"] |= {"dtype": dtype}
    facts["input"] |= {"shape": model.shape("batch", model.frames)}
    if model.frames:
        facts["input"]["frames"] |= {"multiple_of": model.frames}
    return facts


def _converted(jax2onnx: Any, model: Portable) -> Any:
    """Convert the model, with its weights in the graph. Raises UserError where that cannot be done."""

    def function(pixels: UInt8[Array, "B *dims 3"]) -> Float[Array, "B N"]:
        return model.function(model.params, pixels)

    pixels = jax.ShapeDtypeStruct(model.shape("batch", model.frames), np.uint8)
    # jax2onnx adds biases by rank promotion.
    with (
        _explained(f"jax2onnx cannot convert {model.name}"),
        _quiet(),
        jax.numpy_rank_promotion("allow"),
    ):
        return jax2onnx.to_onnx(
            function,
            [pixels],
            model_name="inti_jax",
            opset=_OPSET,
            input_names=[model.input],
            output_names=[model.output],
            normalization_mode="prefer_native",
        )


def _libraries() -> tuple[Any, Any]:
    """Import jax2onnx and ONNX Runtime. Raises UserError where they are not installed."""
    try:
        with _quiet():
            import jax2onnx
            import onnxruntime
    except ImportError as error:
        raise UserError(f"--to onnx needs {error.name}: {_INSTALL}") from None
    onnxruntime.set_default_logger_severity(3)
    return jax2onnx, onnxruntime


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep jax2onnx from logging its parts for other libraries, and shapes that it does not know."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _explained(problem: str) -> Iterator[None]:
    """Turn a library's error, of any kind where it lacks a part of JAX or ONNX, into one line."""
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(f"{problem}: {type(error).__name__}: {reason}; use --to stablehlo") from error
