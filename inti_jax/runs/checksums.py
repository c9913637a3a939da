"""Write checksums of a directory's files, and verify the files against them.

In an object store, which keeps a checksum of each object, that is taken for what is there: nothing is read.
"""

import json
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from etils import epath

from inti_jax.host import stores

SUMS = "checksums.json"
# Bytes that are read at a time for a checksum.
_BLOCK = 2**22


def write(directory: epath.Path) -> None:
    """Write the sizes and checksums of all files of `directory` to a file beside them, as a whole."""
    if stores.is_url(str(directory)):
        files = {
            name: {"bytes": entry.size, "tag": entry.tag}
            for name, entry in stores.entries(str(directory)).items()
        }
        (directory / SUMS).write_text(json.dumps(files, indent=1))
        return
    local = Path(directory)
    paths = sorted(path for path in local.rglob("*") if path.is_file())
    with ThreadPoolExecutor(2) as threads:
        sums = threads.map(_crc32, paths)
        files = {
            str(path.relative_to(local)): {"bytes": path.stat().st_size, "crc32": crc}
            for path, crc in zip(paths, sums, strict=True)
        }
    partial = local / f"{SUMS}.partial"
    with partial.open("w") as file:
        json.dump(files, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(local / SUMS)


def are_there(directory: epath.Path) -> bool:
    """Tell whether the file of checksums, which is written last, is in `directory`."""
    return (directory / SUMS).exists()


def fault(directory: epath.Path) -> str | None:
    """Describe the first fault found in the files of `directory`; None where they match their checksums."""
    stored = stores.is_url(str(directory))
    try:
        files = json.loads((directory / SUMS).read_bytes())
        expected = {
            name: (facts["bytes"], facts["tag" if stored else "crc32"]) for name, facts in files.items()
        }
    except FileNotFoundError:
        return f"{SUMS} is missing"
    except OSError as error:
        return f"{SUMS}: {error.strerror or error}"
    except (AttributeError, KeyError, TypeError, ValueError):
        return f"{SUMS} cannot be read"
    if stored:
        return next(_faults_in_store(stores.entries(str(directory)), expected), None)
    local = Path(directory)
    return next(_faults(local, {local / name: facts for name, facts in expected.items()}), None)


def _faults_in_store(found: dict[str, stores.Entry], expected: dict[str, tuple[int, str]]) -> Iterator[str]:
    """Describe each object that differs from its `expected` size and tag."""
    for name, (size, tag) in expected.items():
        if name not in found:
            yield f"{name} is missing"
        elif found[name].size != size:
            yield f"{name} has {found[name].size} bytes instead of {size}"
        elif found[name].tag != tag:
            yield f"{name} was changed after it was written: its checksum differs"


def _faults(directory: Path, expected: dict[Path, tuple[int, int]]) -> Iterator[str]:
    """Describe each file that differs from its `expected` size and checksum; sizes are compared first."""
    for path, (size, _) in expected.items():
        if not path.is_file():
            yield f"{path.relative_to(directory)} is missing"
        elif path.stat().st_size != size:
            yield f"{path.relative_to(directory)} has {path.stat().st_size} bytes instead of {size}"
    with ThreadPoolExecutor(2) as threads:
        for path, found in zip(expected, threads.map(_crc32_or_error, expected), strict=True):
            if isinstance(found, OSError):
                yield f"{path.relative_to(directory)}: {found.strerror}"
            elif found != expected[path][1]:
                yield f"{path.relative_to(directory)} was changed after it was written: its checksum differs"


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def _crc32_or_error(path: Path) -> int | OSError:
    try:
        return _crc32(path)
    except OSError as error:
        return error
