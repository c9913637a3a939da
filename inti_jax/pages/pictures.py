"""Make pictures that a page holds as data URIs: frames, and maps of values to lay over them."""

import base64
import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

Rgba = tuple[int, int, int, int]

_LARGEST = 224  # pixels of a frame's longer side on a page

# Colours of a map, evenly spread over its range. Both sets can be told apart by colour-blind readers.
HEAT: tuple[Rgba, ...] = ((255, 40, 0, 0), (255, 40, 0, 130), (255, 120, 0, 190), (255, 235, 60, 235))
BALANCE: tuple[Rgba, ...] = (
    (70, 60, 200, 200), (70, 60, 200, 100), (128, 128, 128, 0), (230, 97, 0, 100), (230, 97, 0, 200),
)  # fmt: skip


def frame(pixels: UInt8[np.ndarray, "H W 3"]) -> str:
    """Encode a frame as a JPEG, at most 224 pixels long, and small ones without loss as a PNG."""
    image = Image.fromarray(pixels)
    if max(image.size) <= 64:
        return _uri(image, "png")
    image.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    return _uri(image, "jpeg", quality=85)


def sheet(frames: UInt8[np.ndarray, "T H W 3"], *, columns: int = 4, width: int = 448) -> str:
    """Encode frames in rows as a JPEG at most `width` pixels wide, and small ones without loss as a PNG."""
    count, high, wide, _ = frames.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    gap = max(1, wide // 32)
    size = (rows * (high + gap) - gap, columns * (wide + gap) - gap)
    pixels = np.full((*size, 3), 128, np.uint8)
    for place, frame_pixels in enumerate(frames):
        top, left = (place // columns) * (high + gap), (place % columns) * (wide + gap)
        pixels[top : top + high, left : left + wide] = frame_pixels
    image = Image.fromarray(pixels)
    if max(high, wide) <= 64:
        return _uri(image, "png")
    if image.width > width:
        image = image.resize(
            (width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS
        )
    return _uri(image, "jpeg", quality=80)


def exact(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """Encode a picture of few pixels as a PNG, which a page shows enlarged."""
    return _uri(Image.fromarray(pixels), "png")


def overlay(values: Float[np.ndarray, "h w"], colours: tuple[Rgba, ...], low: float, high: float) -> str:
    """Encode a map of values as a PNG of h x w pixels, which a page lays over a frame.

    `low` has the first colour and `high` the last.
    """
    return _uri(Image.fromarray(coloured(values, colours, low, high)), "png")


def coloured(
    values: Float[np.ndarray, "h w"], colours: tuple[Rgba, ...], low: float, high: float
) -> UInt8[np.ndarray, "h w 4"]:
    """Give each value its colour, by linear interpolation."""
    places = np.linspace(low, high, len(colours))
    channels = [np.interp(values, places, channel) for channel in zip(*colours, strict=True)]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


def gradient(colours: tuple[Rgba, ...]) -> str:
    """Write the colours as a CSS gradient, for a legend."""
    stops = (f"rgb({red} {green} {blue} / {alpha / 255:.2f})" for red, green, blue, alpha in colours)
    return f"linear-gradient(to right, {', '.join(stops)})"


def _uri(image: Image.Image, kind: str, **settings: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
