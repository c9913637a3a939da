"""Read the tensors of a torch `.pt` or `.bin` file without torch and without running its contents.

Such a file is a zip archive with a pickle, `data.pkl`, and a file of raw bytes for each tensor's storage.
TorchScript archives hold their parameters the same way, as the attributes of objects. The objects' code is
not read.
"""

import contextlib
import dataclasses
import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from inti_jax.errors import UserError
from inti_jax.pretrained import inert
from inti_jax.pretrained.lazy_array import LazyArray

_WAY_OUT = "save a model's state_dict() with torch.save, or give a safetensors file or a whole directory"

_PICKLE_START = b"\x80"  # of each protocol that torch has ever written
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file by torch before 1.6


@dataclasses.dataclass(frozen=True)
class Contents:
    """A file's entries by name. An entry that is no tensor has the dtype `object`."""

    arrays: dict[str, LazyArray]
    torchscript: bool = False


def read_archive(path: Path) -> Contents:
    """Read the entries of a zip archive. Names of nested entries are joined with dots.

    Nothing in the archive runs. Raises UserError for a damaged archive, and for a pickle that names something
    that can only do harm.
    """
    with _reading(path), zipfile.ZipFile(path) as archive:
        entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "data.pkl" not in entries:
            raise UserError(f"{path} is a zip without a torch pickle in it (no data.pkl): {_WAY_OUT}")
        found = inert.read(inert.Unpickler(io.BytesIO(archive.read(entries["data.pkl"]))))

    contents = np.memmap(path, mode="r", dtype=np.uint8)
    arrays = {}
    for name, tensor in found.items():
        if tensor is None:
            arrays[name] = _no_tensor(f"{path}: {name}")
            continue
        info = entries.get(f"data/{tensor.key}")
        if info is None:
            raise UserError(f"{path} is damaged, get it again: the data of {name} is missing")
        arrays[name] = _lazy(tensor, _stored_bytes(contents, info, path), f"{path}: {name}")
    return Contents(arrays, "constants.pkl" in entries)


def read_legacy(path: Path) -> Contents:
    """Read a file that torch before 1.6 wrote: five pickles, then the storages one by one.

    Raises UserError as `read_archive` does.
    """
    with _reading(path), path.open("rb") as file:
        if file.read(1) != _PICKLE_START:
            raise UserError(f"{path} is neither a torch checkpoint nor a safetensors file: {_WAY_OUT}")
        file.seek(0)
        if inert.Unpickler(file).load() != _LEGACY_MAGIC:
            raise UserError(f"{path} is a pickle that torch.save did not write: {_WAY_OUT}")
        inert.Unpickler(file).load()  # the format's version
        inert.Unpickler(file).load()  # the writer's byte order and sizes of integers
        weights = inert.Unpickler(file)
        found = inert.read(weights)
        keys = inert.Unpickler(file).load()
        start = file.tell()

        contents = np.memmap(path, mode="r", dtype=np.uint8)
        storages = {}
        for key in keys:
            header = contents[start : start + 8].tobytes()
            size = struct.unpack("<q", header)[0] * weights.storages[key].itemsize if len(header) == 8 else -1
            start += 8 + size
            if size < 0 or start > len(contents):
                raise UserError(f"{path} is truncated or damaged: get it again")
            storages[key] = contents[start - size : start]
        arrays = {
            name: _no_tensor(f"{path}: {name}")
            if tensor is None
            else _lazy(tensor, storages[tensor.key], f"{path}: {name}")
            for name, tensor in found.items()
        }
        return Contents(arrays)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn any error that a damaged or hostile file causes inside into a UserError."""
    try:
        yield
    except UserError:
        raise
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is damaged or truncated, get it again: {error}") from None
    except inert.RefusedError as error:
        raise UserError(
            f"{path}: its pickle asks for {error}, which weights never need: nothing was executed"
        ) from None
    except Exception as error:  # a malformed pickle may fail in any way
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is damaged or not a checkpoint: {type(error).__name__}: {reason}; {_WAY_OUT}"
        ) from None


def _stored_bytes(contents: np.ndarray, info: zipfile.ZipInfo, path: Path) -> np.ndarray:
    """Find the bytes of one file in the zip, as a view of `contents`.

    Raises UserError where the file is compressed, damaged or cut short.
    """
    if info.compress_type != zipfile.ZIP_STORED:
        raise UserError(f"{path} is compressed, which torch does not do: unpack it and save it again")
    header = contents[info.header_offset : info.header_offset + 30].tobytes()
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise UserError(f"{path} is damaged, get it again: {info.filename} is not at the offset in its index")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = info.header_offset + 30 + name_length + extra_length
    stored = contents[start : start + info.file_size]
    if len(stored) < info.file_size:
        raise UserError(f"{path} is truncated in {info.filename}: get it again")
    return stored


def _no_tensor(name: str) -> LazyArray:
    def read() -> np.ndarray:
        raise UserError(f"{name} is not a tensor")

    return LazyArray((), np.dtype(object), read)


def _lazy(tensor: inert.Tensor, storage: np.ndarray, name: str) -> LazyArray:
    itemsize = tensor.dtype.itemsize
    elements = len(storage) // itemsize
    # Checked before anything is read, so that a damaged file is refused as a whole.
    extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=False))
    needed = 0 if 0 in tensor.shape else tensor.offset + extent + 1
    valid = len(tensor.shape) == len(tensor.strides)
    if not valid or min(*tensor.shape, *tensor.strides, tensor.offset, 0) < 0 or needed > elements:
        raise UserError(f"{name} exceeds its data: the file is damaged, get it again")

    def read() -> np.ndarray:
        # as_strided does not support all 8-bit dtypes.
        offset = tensor.offset * itemsize if needed else 0
        strides = [stride * itemsize for stride in tensor.strides]
        return np.ndarray(tensor.shape, tensor.dtype, storage, offset, strides)

    return LazyArray(tensor.shape, tensor.dtype, read)
