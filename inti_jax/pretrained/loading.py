"""Load converted weights into a model's parameters; each device reads only the slice that it keeps."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Float

from inti_jax.errors import UserError
from inti_jax.pretrained.clip_file import ClipFile, Index
from inti_jax.pretrained.clip_rules import is_parameter
from inti_jax.pretrained.converted import open_converted
from inti_jax.pretrained.posemb import Grid, resample

_POSITIONS = "tower.positional_embedding"

# A classifier from class names: its parameters that come from CLIP, and the one for its class embeddings.
_SHARED = {"head.projection.kernel": "projection.kernel", "head.logit_scale": "logit_scale"}
_CLASSES = "head.classes.kernel"


@dataclasses.dataclass(frozen=True)
class Coverage:
    """The result of loading, as paths of parameters."""

    loaded: tuple[str, ...]  # the model's that came from the file
    new: tuple[str, ...]  # the model's others
    dropped: tuple[str, ...]  # the file's that were not used
    resampled: str | None  # the old and the new grid of positions, where they differ

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
    """Load the file's parameters that the model has, with the dtypes of `shapes`, placed by `shardings`.

    `shapes` has all of the model's parameters. Those that the file lacks are left to the caller and listed as
    new. Each process reads only what its own devices keep. Positions are resampled to `grid`, the model's
    patch rows and columns. Without `classes`, only the image tower is loaded. With `classes`, the embeddings
    of the class names by the file's text tower, the whole text head is loaded too. Raises UserError where a
    tower parameter differs in shape, or is only in the file or only in the model: that is another backbone.
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
            f"{path} does not fit the model's backbone: it has width {image.width}, {image.layers} layers "
            f"and patches of {image.patch}; {named} is {there} in the file, {here} in the model"
        )
    image, numerics = file.description.architecture.image, file.description.architecture.numerics
    prefix = int(image.class_token)  # registers have no position
    if shapes[_POSITIONS].shape[0] != grid[0] * grid[1] + prefix:
        raise ValueError(f"the model has positions {shapes[_POSITIONS].shape}, but its grid is {grid}")
    params = {}
    for name in wanted:
        if name == _POSITIONS:
            positions = resample(file.read(name), image.grid, grid, prefix=prefix, method=numerics.resampling)
            params[name] = place(_slices(positions), shapes[name], shardings[name])
        else:
            params[name] = place(partial(file.read, name), shapes[name], shardings[name])
    used = set(wanted)
    if classes is not None:
        shared = {name: theirs for name, theirs in _SHARED.items() if name in shapes}  # SigLIP projects none
        for name, theirs in shared.items():
            params[name] = place(partial(file.read, theirs), shapes[name], shardings[name])
        params[_CLASSES] = place(_slices(classes.T), shapes[_CLASSES], shardings[_CLASSES])
        used |= {*shared.values(), *(name for name in file if name.startswith("text."))}
    old, new_grid = ("x".join(map(str, each)) for each in (image.grid, grid))
    changed = f"{old} to {new_grid}" if old != new_grid else None
    new = tuple(name for name in shapes if name not in params)
    dropped = tuple(name for name in file if name not in used)
    return params, Coverage(tuple(params), new, dropped, changed)


def _fits(name: str, file: ClipFile, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> bool:
    """Tell whether a parameter fits in shape. Positions may differ in number, but not in width."""
    first = 1 if name == _POSITIONS else 0
    return file[name].shape[first:] == shapes[name].shape[first:]


def _slices(whole: np.ndarray) -> Callable[[Index], np.ndarray]:
    return lambda index: whole[index]


def place(read: Callable[[Index], np.ndarray], shape: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.Array:
    """Make a sharded array; each process reads, through `read`, only what its own devices keep.

    Putting a host array to a global sharding instead would compare it between hosts over the network.
    """
    return jax.make_array_from_callback(
        shape.shape, sharding, lambda index: read(index or ()).astype(shape.dtype)
    )
