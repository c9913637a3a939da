"""Unpickle without importing or calling anything that a pickle names.

A pickle is a program that may call any function. Here the functions that rebuild tensors are replaced by
ours, which record offset, shape and strides. Anything else, such as a numpy scalar or a Namespace beside the
weights, is replaced by one inert class. A pickle that names something that can only do harm, such as
`os.system`, is refused, so that nobody goes on to open it elsewhere.
"""

import collections
import dataclasses
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

# By the name of torch's storage class, or of its dtype where the storage is untyped.
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


# Modules that no data needs, and that malicious pickles are built from.
_HARMFUL_MODULES = {
    "os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "runpy", "importlib", "imp", "code",
    "codeop", "pty", "ctypes", "operator", "pickle", "_pickle", "marshal", "commands",
    "webbrowser", "threading", "signal", "pip", "pydoc", "bdb", "pdb", "timeit", "numpy.testing",
    "torch.hub", "torch.serialization", "torch.package", "torch.utils.cpp_extension",
}  # fmt: skip
# Builtins that data may need. All others are refused.
_BUILTIN_DATA = {
    "set", "frozenset", "list", "tuple", "dict", "bytes", "bytearray", "str", "int", "float", "bool",
    "complex", "slice", "range", "object", "type", "Ellipsis", "NotImplemented",
    "getattr",  # finds a nested class or a method
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Dtype:
    """A stand-in for torch's storage class, or for its dtype where the storage is untyped."""

    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of an archive: the key of its storage, and the elements that it takes of that."""

    dtype: np.dtype
    key: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Object:
    """A stand-in for an object of any TorchScript class: its attributes without its behaviour."""

    attributes: Any = None


class _StandIn(_Object):
    """A stand-in for anything else that a pickle names or builds. Nothing of the original is used.

    Items are kept, since weights may be in a dict of another class. Attributes are kept, since weights may be
    in a whole module.
    """

    items: dict[Any, Any] | None = None

    def __new__(cls, *_: Any, **__: Any) -> "_StandIn":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        """Accept the original's arguments and discard them."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items = {} if self.items is None else self.items
        self.items[key] = value

    def append(self, _: Any) -> None:
        """Accept an element of a list and discard it."""

    add = append

    def __repr__(self) -> str:
        return "an object"


class RefusedError(Exception):
    """The error that a pickle names something that no data needs."""


# Based on the unpickler in Python: the one in C allots a memo array as long as a hostile file says.
class Unpickler(pickle._Unpickler):
    """An unpickler that replaces what a pickle names by inert things, and records the storages' dtypes."""

    stack: list[Any]  # the objects that the pickle has built so far

    def __init__(self, file: io.BufferedIOBase):
        super().__init__(file)
        self.storages: dict[str, np.dtype] = {}  # dtypes by key
        self.replaced = ""  # the first name that a stand-in replaced

    def find_class(self, module: str, name: str) -> Any:
        """Give the replacement of a global. Raises RefusedError for one that no data needs."""
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
        """Record a storage, ("storage", type, key, device, elements), and give its dtype and key.

        Files by torch before 1.6 may also have a module's class with its source, ("module", class, file,
        source), which becomes a stand-in, and a storage that is a view into another. Raises RefusedError for
        such a view, and for anything else.
        """
        kind, storage_type, key, *rest = pid
        if kind == "module":
            return _StandIn
        known = kind == "storage" and isinstance(storage_type, _Dtype) and isinstance(key, str)
        if not known or any(rest[2:]):
            raise RefusedError(f"it refers to an unknown storage {pid!r:.80}")
        self.storages[key] = storage_type.dtype
        return storage_type.dtype, key

    def load_build(self) -> None:
        """Keep the state that the pickle sets on a stand-in, and discard that of a dict.

        Raises ValueError for the state of anything else.
        """
        # pickle's own method would set attributes of any object, our functions included.
        state = self.stack.pop()
        made = self.stack[-1]
        if isinstance(made, _Object):
            made.attributes = state
        elif not isinstance(made, dict):
            raise ValueError("it changes something that is not an object")

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


def _harmful(module: str, name: str) -> bool:
    """Tell whether no data needs the global that a pickle names."""
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
    """Rebuild a tensor of a subclass as a plain tensor."""
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
    """Unpickle the entries of a checkpoint, by name; an entry that is no tensor is None.

    Raises RefusedError, and any error that a damaged pickle causes.
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
    """Walk nested dicts and objects; yield each leaf with its path, as None where it is no tensor.

    A container that is referenced twice is walked only the first time, which also ends loops. Plain
    attributes of objects, such as TorchScript's `training`, are left out: no state_dict has them.
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
    """Give the children of `node` by name; None where it is no container of weights."""
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
        # A whole module. Its dict is kept, so that `_walk` recognises it when it comes again.
        node.items = {key: child for part in parts for key, child in attributes[part].items()}
        return node.items
    return None


def _is_plain(value: Any) -> bool:
    """Tell whether `value` is a number, a string, None, or a list of those."""
    items = value if isinstance(value, list | tuple) else [value]
    return all(item is None or isinstance(item, bool | int | float | str) for item in items)
