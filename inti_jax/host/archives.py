"""Write NumPy archives (.npz) as a whole or not at all, and read them without trusting them."""

import contextlib
import math
import os
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from inti_jax.errors import UserError, naming

# Deflate makes no more than 1,032 bytes of one. A member that claims more lies.
_MOST = 1032
# What the readers of zip files and of headers raise for damaged or hostile ones.
_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    EOFError,
    RuntimeError,  # encrypted, an unknown method of compression, or a header of too many brackets
    MemoryError,
    OverflowError,
)


@contextlib.contextmanager
def written(path: Path, *, level: int | None = None) -> Iterator[zipfile.ZipFile]:
    """Give an archive to write to, which appears at `path` once the context ends without an error.

    `level`, from 1 to 9, compresses by deflate. Equal contents make equal files. An OSError names the file.
    """
    partial = path.with_name(f"{path.name}.partial")
    method = zipfile.ZIP_STORED if level is None else zipfile.ZIP_DEFLATED
    try:
        with naming(partial), partial.open("wb") as file:
            with zipfile.ZipFile(file, "w", method, compresslevel=level) as archive:
                yield archive
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def add(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    """Add an array without objects, so that no reader needs pickles."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


def read(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read the arrays of these names. No pickle is loaded, and checksums are compared.

    Raises UserError where the file is missing, is no such archive, is damaged, or lacks an array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: _array(archive, name) for name in names}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except KeyError as error:
        raise UserError(f"{path} lacks the array {error}: it is not such a file, or is damaged") from None
    except _FAULTS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is damaged, or no archive of arrays: {reason}") from None


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Read one array, whose size is checked before memory is taken for it."""
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise KeyError(name) from None
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version != (1, 0):
            raise ValueError(f"`{name}` has a header of version {version}")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or dtype.byteorder == ">" or fortran or min(shape, default=0) < 0:
            raise ValueError(f"`{name}` is an array of {dtype} {shape}, which is not read")
        if info.file_size != member.tell() + size or info.file_size > _MOST * (info.compress_size + 1):
            raise ValueError(f"`{name}` has another size than its header says")
        data = member.read()
    if dtype.kind == "U" and (np.frombuffer(data, "<u4") > sys.maxunicode).any():  # NumPy does not check
        raise ValueError(f"`{name}` has characters that there are not")
    return np.frombuffer(data, dtype).reshape(shape)
