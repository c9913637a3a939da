"""Converted weights into a model's parameters, each device reading the slice that it keeps."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Sharding

from inti_jax.errors import UserError
from inti_jax.pretrained.clip import is_parameter
from inti_jax.pretrained.file import ClipFile
from inti_jax.pretrained.posemb import Grid, resample

_POSITIONS = "tower.positional_embedding"


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What loading did, by parameter: from the file, new in the model, in the file but of no use to it."""

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    resampled: str | None  # from which grid to which, where the resolution differs

    def __str__(self) -> str:
        resampled = f", positions resampled {self.resampled}" if self.resampled else ""
        return f"{len(self.loaded)} loaded, {len(self.new)} new, {len(self.dropped)} dropped{resampled}"


def load_tower(
    path: str | Path,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    shardings: Mapping[str, Sharding],
    *,
    grid: Grid,
) -> tuple[dict[str, jax.Array], Coverage]:
    """The file's `tower.*` that the model has, placed as `shardings` say and in the types of `shapes`.

    `shapes` are the model's parameters, all of them; what the file has not is left to the caller and
    listed as new. Every process reads only what its own devices keep. Positions are resampled to `grid`,
    the model's patch rows and columns. Raises UserError where a tower parameter differs in shape, or is
    in the file and not in the model: that is another backbone.
    """
    file = ClipFile(path)
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
        resize = grid if name == _POSITIONS else None
        params[name] = _place(file, name, shapes[name], shardings[name], resize)
    side = round((file[_POSITIONS].shape[0] - 1) ** 0.5)
    changed = f"{side}x{side} to {grid[0]}x{grid[1]}" if grid != (side, side) else None
    new = tuple(name for name in shapes if name not in params)
    dropped = tuple(name for name in file if name not in params)
    return params, Coverage(tuple(wanted), new, dropped, changed)


def _fits(name: str, file: ClipFile, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> bool:
    """Positions may differ in number, but not in width."""
    first = 1 if name == _POSITIONS else 0
    return file[name].shape[first:] == shapes[name].shape[first:]


def _place(
    file: ClipFile, name: str, shape: jax.ShapeDtypeStruct, sharding: Sharding, resize: Grid | None
) -> jax.Array:
    whole = resample(file.read(name), resize) if resize is not None else None

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        part = file.read(name, index or ()) if whole is None else whole[index or ()]
        return part.astype(shape.dtype)

    return jax.make_array_from_callback(shape.shape, sharding, read)
