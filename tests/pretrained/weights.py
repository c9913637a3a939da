"""A tiny converted CLIP with random weights, in the project's own format."""

from pathlib import Path

import numpy as np

from inti_jax.config.backbones import BACKBONES, CLIP_MEAN, CLIP_STD, BackboneSize, Numerics
from inti_jax.models.clip import Architecture
from inti_jax.pretrained.clip_file import Description, parameter_shapes, write
from inti_jax.pretrained.lazy_array import held


def write_tiny(
    path: Path,
    *,
    image: BackboneSize | None = None,
    embed: int | None = None,
    numerics: Numerics = Numerics(),  # noqa: B008
    seed: int = 0,
) -> Path:
    """Write an image tower, `tiny` unless `image` is given, with a projection where `embed` is given."""
    architecture = Architecture(image or BACKBONES["tiny"], embed, None, numerics)
    rng = np.random.default_rng(seed)
    arrays = {
        name: held(0.1 * rng.standard_normal(shape).astype(np.float32))
        for name, shape in parameter_shapes(architecture).items()
    }
    write(path, arrays, Description(architecture, CLIP_MEAN, CLIP_STD))
    return path
