"""Write explanations as an animation: each frame of a clip, and beside it the frame under its heat map."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from inti_jax.data.codec.encode import encode
from inti_jax.errors import naming
from inti_jax.evaluation.explanation import Explanation
from inti_jax.pages import pictures

Frames = UInt8[np.ndarray, "T H W 3"]

_FPS = 4
_SMALLEST = 224  # pixels of a frame's shorter side; smaller ones are enlarged


def beside(explanation: Explanation) -> Frames:
    """Draw each frame of a clip, and to its right the frame under its heat map, by rollout.

    The colours are those of the page: the strongest patch of the clip has the brightest. Sides are even, as
    H.264 needs them.
    """
    heat = explanation.on_grid(explanation.rollout)
    height, width = explanation.frames.shape[1:3]
    times = -(-_SMALLEST // min(height, width))
    size = tuple(side * times // 2 * 2 for side in (width, height))
    drawn = []
    for frame, patches in zip(explanation.frames, heat, strict=True):
        image = Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)
        colours = pictures.coloured(patches, pictures.HEAT, 0.0, heat.max())
        over = Image.fromarray(colours).resize(size, Image.Resampling.BILINEAR)
        both = Image.new("RGB", (2 * size[0], size[1]))
        both.paste(image, (0, 0))
        both.paste(Image.alpha_composite(image.convert("RGBA"), over).convert("RGB"), (size[0], 0))
        drawn.append(np.asarray(both))
    return np.stack(drawn)


def write(path: Path, clips: Sequence[Frames]) -> None:
    """Write the clips one after the other as a GIF that repeats or as MP4 (H.264), by the path's suffix."""
    frames = [frame for clip in clips for frame in clip]
    if path.suffix.lower() == ".mp4":
        content = encode(frames, _FPS)
    else:
        first, *others = (Image.fromarray(frame) for frame in frames)
        buffer = io.BytesIO()
        first.save(buffer, "gif", save_all=True, append_images=others, duration=1000 // _FPS, loop=0)
        content = buffer.getvalue()
    partial = path.with_name(f"{path.name}.partial")
    with naming(partial):
        partial.write_bytes(content)
    partial.replace(path)
