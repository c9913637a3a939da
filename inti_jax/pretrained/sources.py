"""Read a CLIP checkpoint of any common kind: its arrays, lazily, and the settings beside them.

Kinds: OpenAI's TorchScript archives, torch state dicts (`.pt`, `.bin`), safetensors, and directories of
Hugging Face (`config.json`) or open_clip (`open_clip_config.json`), in one file or in shards.
"""

import dataclasses
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from inti_jax.errors import UserError
from inti_jax.host.names import printable
from inti_jax.pretrained import file_kinds, pickled
from inti_jax.pretrained.lazy_array import LazyArray

_HF_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# By safetensors' names. 8-bit floats are here only so that an error can name them.
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# Names of files with weights, or with an index of their shards, by the file with their settings. Of several
# the first is read, safetensors before pickles.
_NAMED = {"config.json": _HF_WEIGHTS, "open_clip_config.json": _OPEN_CLIP_WEIGHTS}
WEIGHTS = (*_HF_WEIGHTS, *_OPEN_CLIP_WEIGHTS)


@dataclasses.dataclass(frozen=True)
class ForeignCheckpoint:
    """A checkpoint's arrays, and the settings beside them, which are None where their file is absent.

    Settings are read on first access, since a file beside the weights need not belong to them. Access raises
    UserError where a file is no JSON object.
    """

    path: Path
    arrays: dict[str, LazyArray]
    torchscript: bool

    @property
    def directory(self) -> Path:
        """The directory of the weights and the settings."""
        return self.path if self.path.is_dir() else self.path.parent

    @cached_property
    def hf_config(self) -> dict[str, Any] | None:
        """Hugging Face's config.json."""
        return _settings(self.directory / "config.json")

    @cached_property
    def open_clip_config(self) -> dict[str, Any] | None:
        """The open_clip_config.json of open_clip, or None beside a TorchScript archive."""
        # TorchScript archives are OpenAI's and complete; open_clip has none.
        return None if self.torchscript else _settings(self.directory / "open_clip_config.json")

    @cached_property
    def preprocessor(self) -> dict[str, Any] | None:
        """Hugging Face's preprocessor_config.json."""
        return _settings(self.directory / "preprocessor_config.json")


def is_run(path: Path) -> bool:
    """Tell whether `path` is the directory of a training run, whose weights are in its checkpoints."""
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()


def read(path: Path) -> ForeignCheckpoint:
    """Read the checkpoint at `path`, a file or a directory. Raises UserError where it cannot be read."""
    if not path.exists():
        raise UserError(f"{path} does not exist: give a file with weights, or the directory of a checkpoint")
    arrays: dict[str, LazyArray] = {}
    torchscript = False
    for file in weight_files(path):
        found = _read_file(file)
        twice = arrays.keys() & found.arrays.keys()
        if twice:
            raise UserError(f"{file} holds {min(twice)}, which another shard holds too: get the shards again")
        arrays.update(found.arrays)
        torchscript |= found.torchscript
    return ForeignCheckpoint(path, arrays, torchscript)


def weight_files(path: Path) -> list[Path]:
    """List the files that hold the weights: `path` itself, or those in the directory `path`."""
    return _files_of(path) if path.is_dir() else [path]


def has_weights(directory: Path) -> bool:
    """Tell whether `directory` is one of Hugging Face's or open_clip's with weights."""
    try:
        return directory.is_dir() and bool(_files_of(directory))
    except UserError:
        return False


def _files_of(directory: Path) -> list[Path]:
    found = directory / preferred(lambda name: (directory / name).is_file(), directory)
    if not found.name.endswith(".index.json"):
        return [found]
    files = [found.parent / name for name in shard_names(found)]
    for file in files:
        if not file.is_file():
            raise UserError(f"{found} names the shard {file.name}, which is not beside it: put it there")
    return files


def preferred(has: Callable[[str], bool], directory: Path) -> str:
    """Select the file with the weights, or with the index of their shards, among those of a directory.

    `has` tells whether there is a file of that name; the settings among them are in `directory`. Raises
    UserError where there are no settings or no weights.
    """
    present = [kind for kind in _NAMED if has(kind)]
    if not present:
        raise UserError(
            f"{directory} has no config.json, which states the heads and the activation: give a complete "
            "Hugging Face or open_clip directory, or a single weight file"
        )
    if len(present) > 1 and "model_type" not in (_settings(directory / "config.json") or {}):
        present.remove("config.json")  # timm's, with the image tower alone beside it
    names = [name for kind in present for name in _NAMED[kind]]
    for name in sorted(names, key=lambda name: ".bin" in name):
        if has(name):
            return name
    raise UserError(f"{directory} has no weights: put one of {', '.join(names)} there")


def shard_names(index: Path) -> list[str]:
    """Read the names of the shards in an index. Raises UserError where it has none, or one elsewhere."""
    names = (_settings(index) or {}).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{index} has no weight_map of file names: get it again")
    for name in names.values():
        if Path(name).name != name:
            raise UserError(f"{index} names the shard {printable(Path(name).name)}, which is not beside it")
    return sorted(set(names.values()))


def _read_file(path: Path) -> pickled.Contents:
    """Read one file. Its kind is recognised by content first, then by suffix."""
    if what := file_kinds.no_weights(path):
        raise UserError(f"{path} is {what}")
    with path.open("rb") as file:
        start = file.read(9)
    if file_kinds.is_safetensors(start):
        return pickled.Contents(_read_safetensors(path))
    if start.startswith(b"PK"):
        return pickled.read_archive(path)
    if path.suffix == ".safetensors" and not start.startswith(b"\x80"):
        return pickled.Contents(_read_safetensors(path))
    return pickled.read_legacy(path)


def _read_safetensors(path: Path) -> dict[str, LazyArray]:
    """Read the arrays of a safetensors file. Raises UserError where it is damaged or cut short."""
    try:
        handle = safetensors.safe_open(path, "numpy")
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
        if not all(name.isprintable() for name in slices):
            raise UserError(f"{path} is damaged, get it again: its array names cannot be printed")
        return {
            name: LazyArray(tuple(part.get_shape()), _dtype(part), _reader(handle, name))
            for name, part in slices.items()
        }
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged, truncated or not a safetensors file, get it again: {error}"
        ) from None


def _reader(handle: Any, name: str) -> Any:
    return lambda: handle.get_tensor(name)


def _dtype(part: Any) -> np.dtype:
    return np.dtype(_DTYPES.get(part.get_dtype(), np.void))


def _settings(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object")
    return values
