"""Write checksums of a directory's files, and verify the files against them."""

import json
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SUMS = "checksums.json"
# Bytes that are read at a time for a checksum.
_BLOCK = 2**22


def write(directory: Path) -> None:
    """Write the sizes and CRC-32 checksums of all files of `directory` to a file beside them."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    with ThreadPoolExecutor(2) as threads:
        sums = threads.map(_crc32, paths)
        files = {
            str(path.relative_to(directory)): {"bytes": path.stat().st_size, "crc32": crc}
            for path, crc in zip(paths, sums, strict=True)
        }
    with (directory / SUMS).open("w") as file:
        json.dump(files, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def fault(directory: Path) -> str | None:
    """Describe the first fault found in the files of `directory`; None where they match their checksums."""
    try:
        files = json.loads((directory / SUMS).read_bytes())
        expected = {directory / name: (facts["bytes"], facts["crc32"]) for name, facts in files.items()}
    except FileNotFoundError:
        return f"{SUMS} is missing"
    except OSError as error:
        return f"{SUMS}: {error.strerror}"
    except (AttributeError, KeyError, TypeError, ValueError):
        return f"{SUMS} cannot be read"
    return next(_faults(directory, expected), None)


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
