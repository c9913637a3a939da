"""Unpickles without importing or calling anything that a pickle names.

A pickle is a program that may call any function. Here a function that rebuilds a tensor is replaced by one of
ours that notes offset, shape and strides, and anything else, such as a numpy scalar or a Namespace beside the
weights, by one inert class. A pickle that names what can only do harm, such as `os.system`, is refused, so
that nobody goes on to open it elsewhere.
"""

import collections
import dataclasses
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

# By the name of torch's type for storage, or of its dtype where the storage is untyped.
_DTYPES = {
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "UntypedStorage": np.uint8,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
    "QInt8Storage": np.int8,
    "QUInt8Storage": np.uint8,
    "QInt32Storage": np.int32,
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


# Modules and names that no data needs, and that pickles made to do harm are built of.
_HARMFUL_MODULES = {
    "os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "runpy", "importlib", "imp", "code",
    "codeop", "pty", "ctypes", "operator", "pickle", "_pickle", "marshal", "commands",
    "webbrowser", "threading", "signal", "pip", "pydoc", "bdb", "pdb", "timeit", "numpy.testing",
    "torch.hub", "torch.serialization", "torch.package", "torch.utils.cpp_extension",
}  # fmt: skip
_BUILTIN_DATA = {
    "set", "frozenset", "list", "tuple", "dict", "bytes", "bytearray", "str", "int", "float", "bool",
    "complex", "slice", "range", "object", "type", "Ellipsis", "NotImplemented",
    "getattr",  # of a nested class, or of a method
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Dtype:
    """A type of storage, or a dtype where the storage has none of its own."""

    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of an archive: where its storage is, and which of its elements it takes."""

    dtype: np.dtype
    key: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Object:
    """Stands for an object of any TorchScript class: its attributes, and no behaviour."""

    attributes: Any = None


class _StandIn(_Object):
    """Stands for anything else that a pickle names, or makes of it. Nothing of the original is used.

    Items are kept, since weights may be in a dict of another class; so are attributes, since they may be in
    a whole module.
    """

    items: dict[Any, Any] | None = None

    def __new__(cls, *_: Any, **__: Any) -> "_StandIn":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        """Takes what the original would be made of, and lets go of it."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items = {} if self.items is None else self.items
        self.items[key] = value

    def append(self, _: Any) -> None:
        """Takes an element of a list and lets go of it."""

    add = append

    def __repr__(self) -> str:
        return "an object"


class RefusedError(Exception):
    """The pickle names something that no data needs."""


# The one written in Python: the memo of the other is an array as long as a hostile file says.
class Unpickler(pickle._Unpickler):
    stack: list[Any]  # what the pickle has made so far

    def __init__(self, file: io.BufferedIOBase):
        super().__init__(file)
        self.storages: dict[str, np.dtype] = {}  # types by key
        self.replaced = ""  # the first name that a stand-in took the place of

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _Dtype(np.dtype(_DTYPES[name]))
        if module in ("torch._utils", "torch._tensor") and name in _REBUILD:
            return _REBUILD[name]
        if module == "torch.jit._pickle":
            return _plain_list
        if module == "__torch__" or module.startswith("__torch__."):
            return _Object
        full = f"{module}.{name}".encode("unicode_escape").decode()
        if _harmful(module, name):
            raise RefusedError(full)
        self.replaced = self.replaced or full
        return _StandIn

    def persistent_load(self, pid: Any) -> Any:
        """A storage: ("storage", type, key, device, elements); before 1.6 also a view into another.

        Before 1.6 also a module's class with its source: ("module", class, file, source).
        """
        kind, storage_type, key, *rest = pid
        if kind == "module":
            return _StandIn
        known = kind == "storage" and isinstance(storage_type, _Dtype) and isinstance(key, str)
        if not known or any(rest[2:]):
            raise RefusedError(f"an unknown storage {pid!r:.80}")
        self.storages[key] = storage_type.dtype
        return storage_type.dtype, key

    def load_build(self) -> None:
        # The library's own would set attributes of whatever is there, our functions included.
        state = self.stack.pop()
        made = self.stack[-1]
        if isinstance(made, _Object):
            made.attributes = state
        elif not isinstance(made, dict):
            raise ValueError("it changes something that is no object")

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


def _harmful(module: str, name: str) -> bool:
    """Whether no data needs what the pickle names."""
    if module in ("builtins", "__builtin__", "__builtins__"):
        return name not in _BUILTIN_DATA
    parts = module.split(".")
    fronts = {".".join(parts[: i + 1]) for i in range(len(parts))}
    return bool(fronts & _HARMFUL_MODULES) or f"{module}.{name}" in ("torch.load", "torch.jit.load")


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    dtype, key = storage
    if not isinstance(dtype, np.dtype) or not isinstance(key, str):
        raise ValueError("a tensor without a storage")
    return Tensor(dtype, key, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_untyped(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
    _, _, dtype, *_ = rest  # requires_grad and hooks come before it
    if not isinstance(dtype, _Dtype):
        return _StandIn()
    return _rebuild_tensor((dtype.dtype, storage[1]), offset, shape, strides)


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _rebuild_of_type(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """A tensor of a subclass, as the tensor that it is."""
    return function(*arguments) if function in _REBUILD.values() else _StandIn()


def _plain_list(items: Any, *_: Any) -> Any:
    return items


_REBUILD: dict[str, Callable[..., Any]] = {
    "_rebuild_tensor": _rebuild_tensor,
    "_rebuild_tensor_v2": _rebuild_tensor,
    "_rebuild_tensor_v3": _rebuild_untyped,
    "_rebuild_parameter": _rebuild_parameter,
    "_rebuild_parameter_with_state": _rebuild_parameter,
    "_rebuild_from_type_v2": _rebuild_of_type,
}


def read(unpickler: Unpickler) -> dict[str, Tensor | None]:
    """Unpickle the entries of a checkpoint, by name; None for what is no tensor.

    Raises RefusedError, and whatever a damaged pickle may cause.
    """
    root = unpickler.load()
    if _children(root) is None:
        what = f", and asks for {unpickler.replaced}" if unpickler.replaced else ""
        raise ValueError(f"it holds no names{what}")
    found: dict[str, Tensor | None] = {}
    for raw, tensor in _walk(root):
        name = raw if raw.isprintable() else raw.encode("unicode_escape").decode()
        if name in found:
            raise ValueError(f"two entries named {name!r:.80}")
        found[name] = tensor
    return found


def _walk(root: Any) -> Iterator[tuple[str, Tensor | None]]:
    """What nested dicts and objects hold, by its path; None for what is no tensor.

    What is held twice is read where it comes first: a loop ends so. Not the plain attributes of objects,
    such as TorchScript's `training`: no state_dict has them.
    """
    waiting = [("", root)]
    seen = set()
    while waiting:
        prefix, node = waiting.pop()
        children = _children(node)
        if children is None or id(children) in seen or (not children and prefix):
            yield prefix.removesuffix("."), node if isinstance(node, Tensor) else None
            continue
        seen.add(id(children))
        if isinstance(node, _Object):
            children = {key: child for key, child in children.items() if not _is_plain(child)}
        waiting.extend((f"{prefix}{key}.", child) for key, child in reversed(children.items()))


def _children(node: Any) -> dict[Any, Any] | None:
    """What `node` holds by name, if it is something that holds weights."""
    if isinstance(node, dict):
        return node
    if not isinstance(node, _Object):
        return None
    attributes = node.attributes
    if not isinstance(node, _StandIn):
        if not isinstance(attributes, dict):
            raise ValueError("an object without attributes")
        return attributes
    if node.items is not None:
        return node.items
    parts = ("_parameters", "_buffers", "_modules")
    if isinstance(attributes, dict) and all(isinstance(attributes.get(part), dict) for part in parts):
        # A whole module. Kept, so that it is known when it is met again.
        node.items = {key: child for part in parts for key, child in attributes[part].items()}
        return node.items
    return None


def _is_plain(value: Any) -> bool:
    """Whether it is a number, a string, nothing, or a list of those."""
    items = value if isinstance(value, list | tuple) else [value]
    return all(item is None or isinstance(item, bool | int | float | str) for item in items)
