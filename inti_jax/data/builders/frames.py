"""Encode frame folders as videos: a frame folder holds numbered images (`img_00001.jpg`, ...)."""

import itertools
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from inti_jax.data.builders.walk import read_directory
from inti_jax.data.codec.decode import DecodeError
from inti_jax.host.names import printable

# Frames a second if the user gives no rate.
USUAL_RATE = Fraction(25)
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"))

_NUMBERED = re.compile(r"(?P<before>.*?)(?P<number>\d+)(?P<after>\D*)", re.ASCII)
_LARGEST_SIDE = 16_384  # pixels: H.264's own limit in x264
# The only formats that Pillow may open, whatever a file's suffix. Some other formats start programs.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
# Pillow's modes with at most 8 bits a channel. Alpha is dropped.
_MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"))


class Frames(NamedTuple):
    """Source of a video that is made of the images in `folder`, at `rate` frames a second.

    `limit` is the number of frames to take, from the first on, as an annotation says, or None for all.
    """

    folder: Path
    rate: Fraction
    limit: int | None = None


class Series(NamedTuple):
    """File names of the frames in a folder, by frame number, and of the `others`, images that are no frames.

    `fault` is the reason why the frames are no video, or empty.
    """

    names: list[str]
    others: list[str]
    fault: str = ""


def find_series(names: Iterable[str]) -> Series | None:
    """Find the frames among a folder's file names; None if there are none.

    A series is at least two images whose names differ in one number, ordered by that number. Optical flow
    (`flow_x_00001.jpg`, `x_00001.jpg`) beside another series is left out.
    """
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    images = []
    for name in names:
        if not is_image(name):
            continue
        images.append(name)
        if match := _NUMBERED.fullmatch(PurePosixPath(name).stem):
            key = match["before"], match["after"]
            found.setdefault(key, []).append((int(match["number"]), name))
    several = {key: numbered for key, numbered in found.items() if len(numbered) > 1}
    pictures = {key: numbered for key, numbered in several.items() if not _is_flow(key[0])} or several
    if not pictures:
        return None
    if len(pictures) > 1:
        (first, _), (second, _), *_ = sorted(pictures)
        return Series([], [], f"it has several series of frames, {_shown(first)} and {_shown(second)}")
    (numbered,) = pictures.values()
    numbered.sort()
    chosen = {name for _, name in numbered}
    others = [name for name in images if name not in chosen]
    return Series([name for _, name in numbered], others, _gap(numbered))


def size(folder: Path, series: Series) -> int:
    """Add up the sizes of the frames' files, in bytes. Raises OSError."""
    return sum((folder / name).stat().st_size for name in series.names)


def read(source: Frames) -> bytes:
    """Encode a frame folder as an H.264 video of intra frames. The same images give the same bytes.

    An odd height or width loses its last line or column. Raises DecodeError if frames are missing, are not
    images, or differ in size.
    """
    import av

    from inti_jax.data.codec.encode import encode

    try:
        series = find_series(read_directory(source.folder).files)
    except OSError as error:
        raise DecodeError(f"the folder cannot be read: {error.strerror}") from None
    if series is None:
        raise DecodeError("it has no numbered images")
    if series.fault:
        raise DecodeError(series.fault)
    names = series.names
    if source.limit is not None:
        if source.limit > len(names):
            raise DecodeError(f"the annotations list {source.limit} frames, but the folder has {len(names)}")
        names = names[: source.limit]
    try:
        return encode(_images(source.folder, names), source.rate)
    except (av.FFmpegError, ValueError, ArithmeticError) as error:
        reason = str(error).partition("\n")[0]
        raise DecodeError(f"its frames cannot be encoded: {reason}") from None


def _images(folder: Path, names: list[str]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    size: tuple[int, int] | None = None
    for name in names:
        image = _image(folder / name)
        if size is None:
            size = image.shape[:2]
            if min(size) < 2 or max(size) > _LARGEST_SIDE:
                raise DecodeError(
                    f"its frames have {size[1]}x{size[0]} pixels: a side has 2 to {_LARGEST_SIDE}"
                )
        if image.shape[:2] != size:
            raise DecodeError(
                f"its frames differ in size: {printable(names[0])} has {size[1]}x{size[0]} pixels, "
                f"{printable(name)} {image.shape[1]}x{image.shape[0]}"
            )
        yield np.ascontiguousarray(image[: size[0] // 2 * 2, : size[1] // 2 * 2])


def _image(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    from PIL import Image, ImageOps

    name = printable(path.name)
    try:
        with Image.open(path, formats=_FORMATS) as image:
            mode = image.mode
            frames = (
                1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            )  # MPO: a photo and other views of it
            if mode in _MODES and frames == 1:
                upright = ImageOps.exif_transpose(image)
                if "transparency" in upright.info:
                    upright = upright.convert("RGBA")
                return np.asarray(upright.convert("RGB"))
    except OSError as error:
        reason = error.strerror or "it is damaged, truncated or not an image"
        raise DecodeError(f"its frame {name} cannot be read: {reason}") from None
    except Exception as error:  # Pillow does not document what it raises for damaged files
        reason = str(error).partition("\n")[0]
        raise DecodeError(f"its frame {name} cannot be read: {reason}") from None
    if frames > 1:
        raise DecodeError(f"its frame {name} is an animation of {frames} frames")
    raise DecodeError(f"its frame {name} has the pixel format {mode}, not 8 bits a channel")


def _gap(numbered: list[tuple[int, str]]) -> str:
    """Describe the first repeated frame, or the first gap in the numbers' step; empty if there is neither."""
    pairs = list(itertools.pairwise(numbered))
    for (before, name), (after, following) in pairs:
        if after == before:
            return f"both {printable(name)} and {printable(following)} are frame {before}"
    step = min(after - before for (before, _), (after, _) in pairs)
    for (before, name), (after, following) in pairs:
        if after - before != step:
            return (
                f"frame {before + step} is missing: {printable(name)} is followed by {printable(following)}"
            )
    return ""


def _is_flow(before: str) -> bool:
    return before.lower().startswith("flow") or before.lower() in ("x_", "y_")


def _shown(before: str) -> str:
    return f"`{printable(before)}...`"


def is_image(name: str) -> bool:
    """Return True if a file name has the suffix of an image."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES
