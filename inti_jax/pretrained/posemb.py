"""Resample position embeddings to another resolution."""

from typing import Literal

import jax
import numpy as np
from jaxtyping import Float

from inti_jax.errors import UserError

Grid = tuple[int, int]


def resample(
    embedding: Float[np.ndarray, "N D"],
    source: Grid,
    grid: Grid,
    *,
    prefix: int = 1,
    method: Literal["antialiased", "plain"] = "antialiased",
) -> Float[np.ndarray, "M D"]:
    """Resample position embeddings from the patch grid `source` to `grid`, both (rows, columns).

    The first `prefix` positions, such as the class token's, stay. The grid is resized by bicubic
    interpolation with pixels' centres aligned, in torch `interpolate(mode="bicubic", align_corners=False)`:
    "antialiased" (`antialias=True`) as in open_clip, or "plain" as in DINOv2. Raises UserError where the
    positions are not `prefix` and `source`.
    """
    positions, width = embedding.shape[0] - prefix, embedding.shape[1]
    if source[0] * source[1] != positions:
        raise UserError(f"{positions} positions are no grid of {source[0]} x {source[1]}")
    if source == grid:
        return embedding
    patches = embedding[prefix:].astype(np.float32).reshape(*source, width)
    if method == "plain":
        rows, columns = (_cubic(old, new) for old, new in zip(source, grid, strict=True))
        resized = np.einsum("ir,jc,rcd->ijd", rows, columns, patches, optimize=True)
    else:
        # Keys' cubic kernel with a = -0.5, weights beyond the edge dropped, as in torch's antialiased method.
        resized = np.asarray(
            jax.image.resize(
                patches, (*grid, width), method="cubic", antialias=True, precision=jax.lax.Precision.HIGHEST
            )
        )
    return np.concatenate([embedding[:prefix], resized.reshape(-1, width).astype(embedding.dtype)])


def _cubic(old: int, new: int) -> Float[np.ndarray, "{new} {old}"]:
    """Compute the weights of the old positions in each new one.

    The kernel is Keys' cubic with a = -0.75, as torch's. Beyond the edge, the position at the edge counts.
    """
    a = -0.75
    weights = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        first = int(np.floor(centre)) - 1
        for tap in range(first, first + 4):
            x = abs(centre - tap)
            if x <= 1:
                weight = (a + 2) * x**3 - (a + 3) * x**2 + 1
            else:
                weight = a * (x**3 - 5 * x**2 + 8 * x - 4)
            weights[row, min(max(tap, 0), old - 1)] += weight
    return weights
