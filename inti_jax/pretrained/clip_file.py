"""Read and write the project's own file of CLIP weights: float32 safetensors with all that their use needs.

Its metadata holds the architecture, activation, LayerNorm epsilon, resolution, the mean and standard
deviation of the pixels, the text tower's vocabulary where it is known, and a hash of the weights.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import secrets
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import safetensors
from flax import nnx

from inti_jax.config.backbones import OPENAI, BackboneSize, Numerics
from inti_jax.errors import UserError
from inti_jax.models import parameters
from inti_jax.models.clip import CLIP, Architecture
from inti_jax.models.pieces import Pieces
from inti_jax.models.rngs import make_rngs
from inti_jax.models.text import TextSize
from inti_jax.models.tokenizer import Cleaning, Vocabulary
from inti_jax.pretrained import file_kinds
from inti_jax.pretrained.lazy_array import LazyArray

FORMAT, VERSION = "inti_jax.clip", "1"
# Where a file of what a run trained also holds the tower, its metadata describes the tower as a converted
# file's does, with the tower's own hash under this key.
TRAINED, TOWER_HASH = "inti_jax.trained", "tower_hash"
_ANEW = "`python -m inti_jax.convert SRC --out F` writes it anew"
_DTYPE_NAMES = {np.dtype(np.float32): "F32"}

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Description:
    """A file's description of its weights. `mean` and `std` are for pixels in [0, 1].

    `cleaning` names the text cleaning of the library that the weights are from, and goes with the vocabulary.
    Files from before it was recorded are read as "huggingface", as their texts have always been prepared so.
    """

    architecture: Architecture
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    vocabulary: Vocabulary | Pieces | None = None
    cleaning: Cleaning = "huggingface"


def parameter_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Give the shape of each parameter in a file of this architecture, by path."""
    params = parameters.flatten(nnx.state(_abstract(architecture), nnx.Param))
    return {path: leaf.shape for path, leaf in params.items()}


def build(architecture: Architecture, params: Mapping[str, Any]) -> CLIP:
    """Build the model with these parameters, by path. A tower without parameters must not be called."""
    graphdef, shapes = nnx.split(_abstract(architecture))

    def fill(path: tuple[Any, ...], shape: nnx.Variable) -> nnx.Variable:
        name = ".".join(map(str, path))
        return shape.replace(params[name]) if name in params else shape

    return nnx.merge(graphdef, nnx.map_state(fill, shapes))


@functools.cache
def _abstract(architecture: Architecture) -> CLIP:
    """Build the model without its weights, and cache it: tracing a deep one takes seconds."""
    return nnx.eval_shape(lambda: CLIP(architecture, rngs=make_rngs(0)))


@dataclasses.dataclass(frozen=True)
class Header:
    """A converted file's statements about its weights, and the open file."""

    handle: Any
    description: Description
    hash: str
    made_from: str | None
    within: bool  # whether the file is of what was trained, with the image tower in it


def read_header(path: Path) -> Header:
    """Read the header of a file that `ClipFile` takes, and no weights; see there for the errors."""
    if path.is_dir():
        raise UserError(f"{path} is a directory: give a file that `python -m inti_jax.convert` wrote")
    if what := file_kinds.no_safetensors(path):
        raise UserError(
            f"{path} is {what}; give a converted file, which `python -m inti_jax.convert SRC --out F` writes"
        )
    try:
        handle: Any = safetensors.safe_open(path, "numpy")
        metadata = handle.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged, truncated or not a safetensors file ({error}): {_ANEW}"
        ) from None
    within = metadata.get("format") == TRAINED and TOWER_HASH in metadata
    if metadata.get("format") == TRAINED and not within:
        raise UserError(
            f"{path} holds the parameters that a run trained, not a CLIP: pass it as --checkpoint, to "
            "inti_jax.load or as `model.start_from`"
        )
    if metadata.get("format") != FORMAT and not within:
        raise UserError(
            f"{path} is not in this project's format: convert it with `python -m inti_jax.convert SRC "
            "--out F`"
        )
    if metadata.get("format_version") != VERSION:
        raise UserError(
            f"{path} has format {metadata.get('format_version')}, and this version reads {VERSION}: {_ANEW}"
        )
    try:
        description = _from_metadata(metadata)
        digest = metadata[TOWER_HASH if within else "hash"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has damaged metadata ({type(error).__name__}: {error}): {_ANEW}") from None
    return Header(handle, description, digest, metadata.get("made_from"), within)


class ClipFile(Mapping[str, LazyArray]):
    """A converted file's parameters by path, each read lazily, whole or in part.

    `path` may also be a file of what was trained that holds the image tower with it; then that is read alone.
    Raises UserError where `path` is no such file, is damaged, or holds other parameters than the
    architecture it states.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        header = read_header(self.path)
        self._handle = header.handle
        self.description, self.hash, self.made_from = header.description, header.hash, header.made_from
        names = [
            name for name in sorted(self._handle.keys()) if name.startswith("tower.") or not header.within
        ]
        self._arrays = {name: self._lazy(name) for name in names}
        expected = parameter_shapes(self.description.architecture)
        differs = sorted(
            name
            for name in expected.keys() | self._arrays.keys()
            if name not in expected
            or name not in self._arrays
            or self._arrays[name].shape != expected[name]
            or self._arrays[name].dtype != np.float32
        )
        if differs:
            raise UserError(
                f"{path} does not match the architecture that it states, see {', '.join(differs[:3])}: "
                f"{_ANEW}"
            )

    def __getitem__(self, name: str) -> LazyArray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """Read an array, or its part at `index`: slices of step 1, from the first dimension on."""
        return self._handle.get_slice(name)[index] if index else self._handle.get_tensor(name)

    def _lazy(self, name: str) -> LazyArray:
        part = self._handle.get_slice(name)
        dtype = np.dtype(np.float32) if part.get_dtype() == "F32" else np.dtype(np.void)
        return LazyArray(tuple(part.get_shape()), dtype, lambda: self.read(name))


def write(
    path: Path, arrays: Mapping[str, LazyArray], description: Description, *, made_from: str | None = None
) -> str:
    """Write the file, one array in memory at a time, and give the weights' hash.

    The file appears at `path` only when all is written. `made_from` is recorded as it is. Raises UserError
    where the arrays are not the architecture's.
    """
    expected = parameter_shapes(description.architecture)
    if {name: array.shape for name, array in arrays.items()} != expected:
        raise UserError(f"{path}: the arrays to write do not match the architecture")
    metadata = {"format": FORMAT, "format_version": VERSION, **to_metadata(description)}
    if made_from is not None:
        metadata["made_from"] = made_from
    return write_safetensors(path, arrays, lambda digest: {**metadata, "hash": digest})


def content_hash(arrays: Mapping[str, LazyArray]) -> str:
    """Hash the arrays: sha256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        _update(digest, name, arrays[name], arrays[name].read())
    return f"sha256:{digest.hexdigest()}"


def write_safetensors(
    path: Path, arrays: Mapping[str, LazyArray], metadata: Callable[[str], dict[str, str]]
) -> str:
    """Stream float32 arrays into a safetensors file and give their hash.

    `metadata` makes the file's metadata from the hash.
    """
    names = sorted(arrays)
    header: dict[str, Any] = {}
    offset = 0
    for name in names:
        size = int(np.prod(arrays[name].shape)) * arrays[name].dtype.itemsize
        header[name] = {
            "dtype": _DTYPE_NAMES[arrays[name].dtype],
            "shape": arrays[name].shape,
            "data_offsets": (offset, offset + size),
        }
        offset += size

    def encode(digest: str) -> bytes:
        text = json.dumps({"__metadata__": metadata(digest), **header}, ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    # The hash is known only at the end. This placeholder has its length.
    placeholder = "sha256:" + "0" * 64
    digest = hashlib.sha256()
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(encode(placeholder))
        for name in names:
            values = np.ascontiguousarray(arrays[name].read())
            _update(digest, name, arrays[name], values)
            file.write(values.data)
        result = f"sha256:{digest.hexdigest()}"
        file.seek(0)
        file.write(encode(result))
    return result


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    A file or a directory may be written there. Raises UserError where the system refuses that.
    """
    # A random name, not the process's number: hosts that share a disk may have the same numbers.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from None
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def _update(digest: Any, name: str, array: LazyArray, values: np.ndarray) -> None:
    digest.update(json.dumps([name, str(array.dtype), array.shape]).encode())
    digest.update(np.ascontiguousarray(values).data)


def to_metadata(description: Description) -> dict[str, str]:
    """Give the part of a file's metadata that describes its weights."""
    architecture = description.architecture
    metadata = {
        "image": json.dumps(dataclasses.asdict(architecture.image)),
        "embed": json.dumps(architecture.embed),
        "text": json.dumps(architecture.text and dataclasses.asdict(architecture.text)),
        "activation": architecture.numerics.activation,
        "layer_norm_eps": json.dumps(architecture.numerics.eps),
        "resampling": architecture.numerics.resampling,
        "mean": json.dumps(description.mean),
        "std": json.dumps(description.std),
    }
    vocabulary = description.vocabulary
    if vocabulary is not None:
        metadata["vocabulary"] = vocabulary.json if isinstance(vocabulary, Pieces) else vocabulary.to_json()
        metadata["cleaning"] = description.cleaning
    return metadata


def _from_metadata(metadata: Mapping[str, str]) -> Description:
    image, text = json.loads(metadata["image"]), json.loads(metadata["text"])
    if isinstance(image["resolution"], list):  # JSON has no tuples
        image["resolution"] = tuple(image["resolution"])
    architecture = Architecture(
        BackboneSize(**image),
        json.loads(metadata["embed"]),
        text and TextSize(**text),
        Numerics(
            metadata["activation"],  # type: ignore[arg-type]
            json.loads(metadata["layer_norm_eps"]),
            metadata.get("resampling", OPENAI.resampling),  # type: ignore[arg-type]
        ),
    )
    mean, std = json.loads(metadata["mean"]), json.loads(metadata["std"])
    cleaning = metadata.get("cleaning", "huggingface")
    if cleaning not in get_args(Cleaning):
        raise ValueError(f"cleaning {cleaning!r}")
    vocabulary: Vocabulary | Pieces | None = None
    if "vocabulary" in metadata:
        given = metadata["vocabulary"]
        # The type checker does not narrow a literal by `in`.
        is_pieces = cleaning in ("siglip", "siglip2")
        vocabulary = Pieces(given, cleaning) if is_pieces else Vocabulary.from_json(given)  # type: ignore[arg-type]
    return Description(architecture, tuple(mean), tuple(std), vocabulary, cleaning)  # type: ignore[arg-type]
