"""Resample position embeddings to another resolution."""

import jax
import numpy as np
from jaxtyping import Float

from inti_jax.errors import UserError

Grid = tuple[int, int]


def resample(
    embedding: Float[np.ndarray, "N D"], grid: Grid, *, source: Grid | None = None
) -> Float[np.ndarray, "M D"]:
    """Resample position embeddings from the patch grid `source` (default: square) to `grid` (rows, columns).

    This is open_clip's method. The class position stays. The grid is resized by antialiased bicubic
    interpolation with pixels' centres aligned, in torch
    `interpolate(mode="bicubic", antialias=True, align_corners=False)`. Raises UserError where the positions
    are not a class token and `source`.
    """
    positions, width = embedding.shape[0] - 1, embedding.shape[1]
    if source is None:
        side = round(max(positions, 0) ** 0.5)
        source = (side, side)
    if source[0] * source[1] != positions:
        raise UserError(f"{positions} positions are no grid of {source[0]} x {source[1]}")
    if source == grid:
        return embedding
    patches = embedding[1:].astype(np.float32).reshape(*source, width)
    # Keys' cubic kernel with a = -0.5, weights beyond the edge dropped, as in torch's antialiased method.
    resized = jax.image.resize(
        patches, (*grid, width), method="cubic", antialias=True, precision=jax.lax.Precision.HIGHEST
    )
    flat = np.asarray(resized).reshape(-1, width)
    return np.concatenate([embedding[:1], flat.astype(embedding.dtype)])
