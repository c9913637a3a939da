"""Converted weights into a model's parameters, each device reading the slice that it keeps."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Float

from inti_jax.errors import UserError
from inti_jax.pretrained.clip import is_parameter
from inti_jax.pretrained.converted import open_converted
from inti_jax.pretrained.file import ClipFile, Index
from inti_jax.pretrained.posemb import Grid, resample

_POSITIONS = "tower.positional_embedding"

# A classifier from class names: what it shares with CLIP, and the embeddings that CLIP's text tower gave.
_SHARED = {"head.projection.kernel": "projection.kernel", "head.logit_scale": "logit_scale"}
_CLASSES = "head.classes.kernel"


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What loading did: the model's parameters that are from the file, those that are new, and the file's
    that were of no use."""

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    resampled: str | None  # from which grid to which, where the resolution differs

    def __str__(self) -> str:
        resampled = f", positions resampled {self.resampled}" if self.resampled else ""
        return f"{len(self.loaded)} loaded, {len(self.new)} new, {len(self.dropped)} dropped{resampled}"


def load(
    path: str | Path,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    shardings: Mapping[str, Sharding],
    *,
    grid: Grid,
    classes: Float[np.ndarray, "K E"] | None = None,
) -> tuple[dict[str, jax.Array], Coverage]:
    """The file's parameters that the model has, placed as `shardings` say and in the types of `shapes`.

    `shapes` are the model's parameters, all of them; what the file has not is left to the caller and
    listed as new. Every process reads only what its own devices keep. Positions are resampled to `grid`,
    the model's patch rows and columns. With `classes`, which the file's text tower made of the class names,
    that is the image tower and the whole text head; else the image tower. Raises UserError where a tower
    parameter differs in shape, or is in the file and not in the model: that is another backbone.
    """
    file = open_converted(path)
    wanted = [name for name in file if name.startswith("tower.")]
    expected = [name for name in shapes if name.startswith("tower.") and is_parameter(name)]
    absent = sorted(set(wanted) ^ set(expected))
    differs = [name for name in wanted if name in shapes and not _fits(name, file, shapes)]
    if absent or differs:
        image, named = file.description.architecture.image, (absent + differs)[0]
        here = list(shapes[named].shape) if named in shapes else "absent"
        there = list(file[named].shape) if named in file else "absent"
        raise UserError(
            f"{path} is of another backbone than the model's: it has width {image.width}, "
            f"{image.layers} layers and patches of {image.patch}; {named} is {there} in it, "
            f"{here} in the model"
        )
    if shapes[_POSITIONS].shape[0] != grid[0] * grid[1] + 1:
        raise ValueError(f"the model has positions {shapes[_POSITIONS].shape}, but its grid is {grid}")
    params = {}
    for name in wanted:
        if name == _POSITIONS:
            params[name] = place(_slices(resample(file.read(name), grid)), shapes[name], shardings[name])
        else:
            params[name] = place(partial(file.read, name), shapes[name], shardings[name])
    used = set(wanted)
    if classes is not None:
        for name, theirs in _SHARED.items():
            params[name] = place(partial(file.read, theirs), shapes[name], shardings[name])
        params[_CLASSES] = place(_slices(classes.T), shapes[_CLASSES], shardings[_CLASSES])
        used |= {*_SHARED.values(), *(name for name in file if name.startswith("text."))}
    side = round((file[_POSITIONS].shape[0] - 1) ** 0.5)
    changed = f"{side}x{side} to {grid[0]}x{grid[1]}" if grid != (side, side) else None
    new = tuple(name for name in shapes if name not in params)
    dropped = tuple(name for name in file if name not in used)
    return params, Coverage(tuple(params), new, dropped, changed)


def _fits(name: str, file: ClipFile, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> bool:
    """Positions may differ in number, but not in width."""
    first = 1 if name == _POSITIONS else 0
    return file[name].shape[first:] == shapes[name].shape[first:]


def _slices(whole: np.ndarray) -> Callable[[Index], np.ndarray]:
    return lambda index: whole[index]


def place(read: Callable[[Index], np.ndarray], shape: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.Array:
    """Make an array of which each process reads, through `read`, what its own devices keep, and nothing else.

    On several hosts a host array that is put to a global sharding would be compared over the network.
    """
    return jax.make_array_from_callback(
        shape.shape, sharding, lambda index: read(index or ()).astype(shape.dtype)
    )
