"""Reads the tensors of a torch `.pt` or `.bin` file, without torch and without running what is in it.

Such a file is a zip archive with a pickle, `data.pkl`, and a file of raw bytes for each tensor's storage. A
pickle is a program that may call any function; here it can name only those that rebuild a tensor, each
replaced by one of ours that merely notes offset, shape and strides. TorchScript archives hold their
parameters the same way, as the attributes of objects, whose code is not looked at.
"""

import collections
import contextlib
import dataclasses
import io
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from inti_jax.errors import UserError
from inti_jax.pretrained.lazy import LazyArray

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file by torch before 1.6

_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


@dataclasses.dataclass(frozen=True)
class _StorageType:
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """One tensor of an archive: where its storage is, and which of its elements it takes."""

    dtype: np.dtype
    key: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Object:
    """Stands for an object of any TorchScript class: its attributes, and no behaviour."""

    attributes: Any = None

    def __setstate__(self, attributes: Any) -> None:
        self.attributes = attributes


@dataclasses.dataclass(frozen=True)
class Contents:
    """A file's entries by name, where what is no tensor has the dtype `object`."""

    arrays: dict[str, LazyArray]
    beside: tuple[str, ...] = ()  # what a training checkpoint holds beside its state_dict
    torchscript: bool = False


def read_archive(path: Path) -> Contents:
    """The entries of a zip archive.

    Raises UserError for a damaged archive, and for a pickle that names anything but tensors and
    containers; nothing of it has run then.
    """
    with _reading(path), zipfile.ZipFile(path) as archive:
        entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "data.pkl" not in entries:
            raise UserError(f"{path} is a zip without a torch pickle in it (no data.pkl)")
        root = _Unpickler(io.BytesIO(archive.read(entries["data.pkl"]))).load()
        found, beside = _entries(root)

    contents = np.memmap(path, mode="r", dtype=np.uint8)
    arrays = {}
    for name, tensor in found.items():
        if tensor is None:
            arrays[name] = _no_tensor(f"{path}: {name}")
            continue
        info = entries.get(f"data/{tensor.key}")
        if info is None:
            raise UserError(f"{path} is damaged: the data of {name} is not in it")
        arrays[name] = _lazy(tensor, _stored_bytes(contents, info, path), f"{path}: {name}")
    return Contents(arrays, beside, "constants.pkl" in entries)


def read_legacy(path: Path) -> Contents:
    """The entries of a file as torch wrote it before 1.6: five pickles, then the storages one by one.

    Raises UserError as `read_archive` does.
    """
    with _reading(path), path.open("rb") as file:
        if _Unpickler(file).load() != _LEGACY_MAGIC:
            raise UserError(f"{path} is no checkpoint: no zip, no safetensors file and no torch pickle")
        _Unpickler(file).load()  # the format's version
        _Unpickler(file).load()  # the writer's byte order and sizes of integers
        weights = _Unpickler(file)
        found, beside = _entries(weights.load())
        keys = _Unpickler(file).load()
        start = file.tell()

        contents = np.memmap(path, mode="r", dtype=np.uint8)
        storages = {}
        for key in keys:
            header = contents[start : start + 8].tobytes()
            size = struct.unpack("<q", header)[0] * weights.storages[key].itemsize if len(header) == 8 else -1
            start += 8 + size
            if size < 0 or start > len(contents):
                raise UserError(f"{path} is cut short or damaged")
            storages[key] = contents[start - size : start]
        arrays = {
            name: _no_tensor(f"{path}: {name}")
            if tensor is None
            else _lazy(tensor, storages[tensor.key], f"{path}: {name}")
            for name, tensor in found.items()
        }
        return Contents(arrays, beside)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what a damaged or hostile file may cause into a UserError."""
    try:
        yield
    except UserError:
        raise
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is damaged or cut short: {error}") from None
    except _RefusedError as error:
        raise UserError(
            f"{path}: its pickle asks for {error}, which no weights need: nothing was run"
        ) from None
    except Exception as error:  # a malformed pickle may fail in any way
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is damaged or no checkpoint: {type(error).__name__}: {reason}") from None


class _RefusedError(Exception):
    """The pickle names something that is not part of a tensor."""


# The one written in Python: the memo of the other is an array as long as a hostile file says.
class _Unpickler(pickle._Unpickler):
    def __init__(self, file: io.BufferedIOBase):
        super().__init__(file)
        self.storages: dict[str, np.dtype] = {}  # types by key

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in _DTYPES:
            return _StorageType(np.dtype(_DTYPES[name]))
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor")):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if module == "torch.jit._pickle":
            return _plain_list
        if module == "__torch__" or module.startswith("__torch__."):
            return _Object
        raise _RefusedError(f"{module}.{name}".encode("unicode_escape").decode())

    def persistent_load(self, pid: Any) -> tuple[np.dtype, str]:
        """A storage: ("storage", type, key, device, elements); before 1.6 also a view into another."""
        kind, storage_type, key, *rest = pid
        known = kind == "storage" and isinstance(storage_type, _StorageType) and isinstance(key, str)
        if not known or any(rest[2:]):
            raise _RefusedError(f"an unknown storage {pid!r:.80}")
        self.storages[key] = storage_type.dtype
        return storage_type.dtype, key


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    dtype, key = storage
    return _Tensor(dtype, key, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _plain_list(items: Any, *_: Any) -> Any:
    return items


def _entries(root: Any) -> tuple[dict[str, _Tensor | None], tuple[str, ...]]:
    """The entries by name, and of a training checkpoint, whose state_dict they are, what is beside it."""
    beside: tuple[str, ...] = ()
    if isinstance(root, dict) and isinstance(root.get("state_dict"), dict):
        beside = tuple(str(key) for key in root if key != "state_dict")
        root = root["state_dict"]
    if not isinstance(root, _Object | dict):
        raise ValueError("it holds no names")
    found: dict[str, _Tensor | None] = {}
    for name, tensor in _walk(root):
        if name in found:
            raise ValueError(f"two entries named {name!r:.80}")
        found[name] = tensor
    for name in (*beside, *found):
        if not name.isprintable():
            raise ValueError(f"an entry named {name!r:.80}")
    return found, beside


def _walk(root: Any) -> Iterator[tuple[str, _Tensor | None]]:
    """What nested dicts and objects hold, by its path; None for what is no tensor.

    Not the plain attributes of objects, such as TorchScript's `training`: no state_dict has them.
    """
    waiting = [("", root)]
    seen = set()
    while waiting:
        prefix, node = waiting.pop()
        if not isinstance(node, _Object | dict):
            yield prefix.removesuffix("."), node if isinstance(node, _Tensor) else None
            continue
        children = node.attributes if isinstance(node, _Object) else node
        if not isinstance(children, dict):
            raise ValueError("an object without attributes")
        if id(children) in seen:
            raise ValueError("an object that holds itself, or is held twice")
        seen.add(id(children))
        if isinstance(node, _Object):
            children = {key: child for key, child in children.items() if not _is_plain(child)}
        elif not children and prefix:
            yield prefix.removesuffix("."), None
        waiting.extend((f"{prefix}{key}.", child) for key, child in reversed(children.items()))


def _is_plain(value: Any) -> bool:
    """Whether it is a number, a string, nothing, or a list of those."""
    items = value if isinstance(value, list | tuple) else [value]
    return all(item is None or isinstance(item, bool | int | float | str) for item in items)


def _stored_bytes(contents: np.ndarray, info: zipfile.ZipInfo, path: Path) -> np.ndarray:
    """The bytes of one file in the zip, in place."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise UserError(f"{path} is compressed, which torch does not do: unpack and save it anew")
    header = contents[info.header_offset : info.header_offset + 30].tobytes()
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise UserError(f"{path} is damaged: {info.filename} is not where its index says")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = info.header_offset + 30 + name_length + extra_length
    stored = contents[start : start + info.file_size]
    if len(stored) < info.file_size:
        raise UserError(f"{path} is cut short in {info.filename}")
    return stored


def _no_tensor(name: str) -> LazyArray:
    def read() -> np.ndarray:
        raise UserError(f"{name} is no tensor")

    return LazyArray((), np.dtype(object), read)


def _lazy(tensor: _Tensor, storage: np.ndarray, name: str) -> LazyArray:
    itemsize = tensor.dtype.itemsize
    elements = len(storage) // itemsize
    # Checked by hand, since as_strided would read beyond the storage.
    extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=False))
    needed = 0 if 0 in tensor.shape else tensor.offset + extent + 1
    valid = len(tensor.shape) == len(tensor.strides)
    if not valid or min(*tensor.shape, *tensor.strides, tensor.offset, 0) < 0 or needed > elements:
        raise UserError(f"{name} reaches beyond its data: the file is damaged")

    def read() -> np.ndarray:
        flat = storage[: elements * itemsize].view(tensor.dtype)[tensor.offset :]
        strides = [stride * itemsize for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)

    return LazyArray(tensor.shape, tensor.dtype, read)
