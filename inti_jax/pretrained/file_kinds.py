"""Recognise a file's kind by its first bytes, so that an error about the file can name it."""

import codecs
import json
import re
import struct
from pathlib import Path

_START = 4096
_MAX_HEADER = 100_000_000  # bytes; safetensors' own limit

# Files that users give in place of weights, by their first bytes, with the remedy.
_BY_START = {
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"BZh": "compressed with bzip2: unpack it first",
    b"\xfd7zXZ": "compressed with xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    b"\x89HDF": "an HDF5 file, such as Keras writes: give a torch state dict or a safetensors file",
    b"\x93NUMPY": "a NumPy array: give a torch state dict or a safetensors file",
    b"GGUF": "a GGUF file, whose weights are quantized: give the original weights",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
}


def is_safetensors(start: bytes) -> bool:
    """Tell whether a file with this start is safetensors: the header's length in 8 bytes, then JSON.

    Check this before any other kind: the length may look like the start of another kind of file.
    """
    return start[8:9] == b"{" and start[6:8] == b"\0\0"


def no_weights(path: Path) -> str | None:
    """Describe a file of a known kind without weights, with the remedy; None for any other file."""
    with path.open("rb") as file:
        start = file.read(_START)
    if not start:
        return "empty: copy or download it again"
    if is_safetensors(start):
        return None
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        size = re.search(rb"^size (\d+)", start, re.MULTILINE)
        of = f" for a file of {int(size[1]):,} bytes" if size else ""
        return (
            f"a Git LFS pointer{of}, not the weights: run `git lfs pull` in its repository, or download the "
            "file itself"
        )
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<!--")):
        return (
            "an HTML page, such as a login or an error, not weights: open the address in a browser, and "
            "save the file itself"
        )
    if text.startswith((b"<?xml", b"<error")):
        return "an XML document, probably a server's error message, not weights: download the file again"
    for magic, what in _BY_START.items():
        if start.startswith(magic):
            return what
    if start[257:262] == b"ustar":
        return "a tar archive: unpack it, and give the weights in it"
    if text.startswith((b"{", b"[")) and b"\0" not in start:
        return "JSON, not weights: give the file with the weights, or the whole directory"
    if (line := _first_line(start)) is not None:
        return f"text, not weights: it begins with {line!r}; download the file again"
    return None


def _first_line(start: bytes) -> str | None:
    """Return the beginning of the first line of a text; None for a file that is no text."""
    try:
        # Incrementally, since the last character may be cut.
        text = codecs.getincrementaldecoder("utf-8")().decode(start).removeprefix("\ufeff").strip()
    except UnicodeDecodeError:
        return None
    if not text or not all(char.isprintable() or char.isspace() for char in text):
        return None
    return text.splitlines()[0][:40]


def no_safetensors(path: Path) -> str | None:
    """Describe a path that is known to be no safetensors file; None for any other."""
    if not path.exists():
        return "not there"
    if path.is_dir():
        return "a directory"
    with path.open("rb") as file:
        start = file.read(9)
    if is_safetensors(start):
        return None
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return "a torch checkpoint"
    return no_weights(path)


def is_own(path: Path) -> bool:
    """Tell whether `path` is a file in one of this project's formats."""
    return path.is_file() and (stated_format(path) or "").startswith("inti_jax.")


def stated_format(path: Path) -> str | None:
    """Read the format that a safetensors file states, such as `inti_jax.clip`; None for any other file."""
    with path.open("rb") as file:
        length = file.read(8)
        if len(length) < 8:
            return None
        size = struct.unpack("<Q", length)[0]
        if size > min(_MAX_HEADER, path.stat().st_size):
            return None
        try:
            header = json.loads(file.read(size))
        except ValueError:
            return None
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return str(metadata.get("format")) if isinstance(metadata, dict) and "format" in metadata else None
