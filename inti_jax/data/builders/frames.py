"""Frame folders: a video kept as numbered images (`img_00001.jpg`, ...), encoded as a video on the way."""

import itertools
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from inti_jax.data.builders.names import printable
from inti_jax.data.builders.walk import read_directory
from inti_jax.data.codec.decode import DecodeError

# Frames a second where neither the user nor the images say.
USUAL_RATE = Fraction(25)
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"))

_NUMBERED = re.compile(r"(?P<before>.*?)(?P<number>\d+)(?P<after>\D*)", re.ASCII)
_LARGEST_SIDE = 16_384  # pixels: H.264's own limit in x264
# Of those that Pillow knows, whatever a file is called: some of the others start programs.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
# How images store pixels of 8 bits a channel; alpha is left out.
_MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"))


class Frames(NamedTuple):
    """A video to be made of the images in `folder`, at `rate` frames a second.

    `limit` is how many frames an annotation says to take from the first on, or None for all.
    """

    folder: Path
    rate: Fraction
    limit: int | None = None


class Series(NamedTuple):
    """The images of a folder that belong together, by frame number, and the images beside them.

    `fault` says why they are no video, or is empty.
    """

    names: list[str]
    others: list[str]
    fault: str = ""


def find_series(names: Iterable[str]) -> Series | None:
    """Find the frames among a folder's file names; None where they are no frames.

    A series is at least two images whose names differ in one number, ordered by that number. Optical flow
    (`flow_x_00001.jpg`, `x_00001.jpg`) beside other images is left out.
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
    """Encode a frame folder as a video whose frames are H.264 intra frames; the same images, the same bytes.

    An odd height or width loses its last line or column. Raises DecodeError where frames are missing, are no
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
            raise DecodeError(f"{source.limit} frames are listed, but {len(names)} are there")
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
            )  # MPO: a photo and its like
            if mode in _MODES and frames == 1:
                upright = ImageOps.exif_transpose(image)
                if "transparency" in upright.info:
                    upright = upright.convert("RGBA")
                return np.asarray(upright.convert("RGB"))
    except OSError as error:
        reason = error.strerror or "it is damaged, cut short or no image"
        raise DecodeError(f"its frame {name} cannot be read: {reason}") from None
    except Exception as error:  # whatever Pillow raises for damaged files, which it does not list
        reason = str(error).partition("\n")[0]
        raise DecodeError(f"its frame {name} cannot be read: {reason}") from None
    if frames > 1:
        raise DecodeError(f"its frame {name} is an animation of {frames} frames")
    raise DecodeError(f"its frame {name} has pixels of the kind {mode}, not of 8 bits a channel")


def _gap(numbered: list[tuple[int, str]]) -> str:
    """Say which frame is missing, where numbers do not go on by the same step; or which is there twice."""
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
    """Say that a file is an image by its name."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES
