"""Convert videos and images that a program has in memory to uint8 RGB frames in NumPy.

Arrays may come from NumPy, JAX, torch or any library whose arrays NumPy can read; of these only NumPy is
imported. Ambiguous videos are refused: floats (in 0..1, or normalised?) and channels that come first.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from inti_jax.errors import UserError

_IMAGES = "images are an array [B, H, W, 3] or a list of them"
_VIDEO = "a video is uint8 [T, H, W, 3] or [B, T, H, W, 3], or a list of frames"

# Modes of pictures with more than 8 bits a channel, which Pillow would cut.
_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def clips(video: Any) -> tuple[list[UInt8[np.ndarray, "T H W 3"]], bool]:
    """Convert one clip or several to clips in NumPy.

    One clip is `[T, H, W, C]` or a list of frames. Several are `[B, T, H, W, C]` or a list of clips. Frames
    are arrays `[H, W, C]` or Pillow images; in a list they may also be grey `[H, W]`. C is 1 (grey), 3 (RGB)
    or 4 (RGBA, whose alpha is dropped, as decoding a video does). Returns the clips, and True if `video` was
    several, of which there may be none. Raises UserError for anything else.
    """
    first = video[0] if isinstance(video, list | tuple) and video else video
    if isinstance(first, str | bytes | os.PathLike):
        raise UserError(
            f"{_VIDEO}, not the path {os.fsdecode(first)}: `python -m inti_jax.predict --checkpoint RUN "
            "VIDEO`, or inti_jax.predict.predict_files, decodes files as the evaluation does"
        )
    if isinstance(video, list | tuple):
        if not video:
            raise UserError(f"{_VIDEO}, not an empty list")
        if _is_clip(video[0]):
            return [_one_clip(clip, f"video {index}") for index, clip in enumerate(video)], True
        return [_one_clip(video, "the video")], False
    array = _array(video)
    if array.ndim == 5:
        _check(array, "[B, T, H, W, 3]")
        return [_rgb(clip) for clip in array], True
    return [_one_clip(array, "the video")], False


def pixels(images: Any) -> Shaped[np.ndarray, "..."]:
    """Convert images to one array, from `[B, H, W, C]` or a list of arrays or Pillow images of one size.

    Grey and RGBA pixels (uint8) become RGB. Floats and arrays of other shapes are returned unchanged. Raises
    UserError where NumPy cannot read the images, or where their sizes differ.
    """
    first = images[0] if isinstance(images, list | tuple) and images else images
    if isinstance(first, str | bytes | os.PathLike):
        raise UserError(f"{_IMAGES}, not the path {os.fsdecode(first)}: open it with Pillow")
    if isinstance(images, list | tuple) and isinstance(first, Image.Image):
        return _stack(images, "the list")
    if isinstance(images, list | tuple) and images and not isinstance(images[0], list | tuple):
        parts = [_array(image, _IMAGES) for image in images]
        if len({part.shape for part in parts}) > 1:
            raise UserError(f"{_IMAGES} of one size, not of {len({part.shape for part in parts})} sizes")
        array = np.stack(parts)
    else:
        array = _array(images, _IMAGES)
    return _rgb(array) if array.dtype == np.uint8 and array.ndim == 4 else array


def _is_clip(item: Any) -> bool:
    """Tell whether an item of a list is a clip rather than a frame."""
    if isinstance(item, list | tuple):
        return True
    return not isinstance(item, Image.Image) and _array(item).ndim == 4


def _one_clip(clip: Any, name: str) -> UInt8[np.ndarray, "T H W 3"]:
    if isinstance(clip, list | tuple):
        return _stack(clip, name)
    array = _array(clip)
    if array.ndim != 4:
        raise UserError(f"{_VIDEO}, not {_describe(array)}{_hint(array)}")
    _check(array, "[T, H, W, 3]")
    return _rgb(array)


def _stack(frames: Sequence[Any], name: str) -> UInt8[np.ndarray, "T H W 3"]:
    made: list[np.ndarray] = []
    for index, frame in enumerate(frames):
        array = _picture(frame) if isinstance(frame, Image.Image) else _array(frame)
        if array.ndim == 2 and array.dtype == np.uint8:
            array = array[..., None]
        if array.ndim != 3 or array.dtype != np.uint8 or array.shape[-1] not in (1, 3, 4):
            raise UserError(
                f"frames are uint8 [H, W, 3]: frame {index} of {name} is {_describe(array)}{_hint(array)}"
            )
        if made and array.shape[:2] != made[0].shape[:2]:
            raise UserError(
                f"the frames of {name} differ in size: frame {index} is {list(array.shape[:2])}, the first "
                f"{list(made[0].shape[:2])}"
            )
        made.append(_rgb(array))
    if not made:
        raise UserError(f"{name} has no frames")
    return np.stack(made)


def _check(array: np.ndarray, wanted: str) -> None:
    if array.dtype != np.uint8 or array.shape[-1] not in (1, 3, 4):
        raise UserError(f"{_VIDEO}: {wanted}, not {_describe(array)}{_hint(array)}")


def _rgb(array: UInt8[np.ndarray, "*B C"]) -> UInt8[np.ndarray, "*B D"]:
    """Repeat grey in three channels and drop the alpha of RGBA; return anything else unchanged."""
    if array.shape[-1] == 1:
        return np.repeat(array, 3, axis=-1)
    return array[..., :3] if array.shape[-1] == 4 else array


def _picture(picture: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    if picture.mode in _DEEP:
        raise UserError(f"a picture has more than 8 bits a channel (mode {picture.mode}): scale it to 0..255")
    try:
        return np.asarray(picture.convert("RGB"))  # a picture that was opened from a file is read only now
    except (OSError, SyntaxError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"a picture cannot be read: {reason}") from None


def _array(value: Any, wanted: str = _VIDEO) -> np.ndarray:
    """Convert the value to NumPy, from any device. Raises UserError where it is not an array."""
    if isinstance(value, Image.Image):
        raise UserError(f"{wanted}, not one picture: give a list of them")
    try:
        for name in ("detach", "cpu"):  # torch's methods
            if callable(method := getattr(value, name, None)):
                value = method()
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{wanted}, not {type(value).__name__}: {reason}") from None
    if array.dtype == object:
        raise UserError(f"{wanted}, not {type(value).__name__}")
    return array


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _hint(array: np.ndarray) -> str:
    """Suggest the most likely fix for an array of this shape and type."""
    shape = array.shape
    if len(shape) >= 3 and shape[-1] not in (1, 3, 4) and shape[-3] in (1, 3):
        return ": channels come last, as in np.moveaxis(x, -3, -1)"
    if array.dtype != np.uint8:
        return ": give pixels in 0..255 as uint8"
    if len(shape) == 3 and shape[-1] in (1, 3, 4):
        return ": that is one frame, and [x] a video of it"
    return ": grey frames are [T, H, W, 1]"
