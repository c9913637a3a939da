"""Resampled positions, against torch's interpolation as open_clip calls it."""

import numpy as np
import pytest
import torch

from inti_jax.errors import UserError
from inti_jax.pretrained.posemb import resample


def _torch(patches, source, grid, antialias):
    embedding = patches
    patches = torch.from_numpy(patches).reshape(1, *source, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        patches, size=grid, mode="bicubic", antialias=antialias, align_corners=False
    )
    return resized[0].permute(1, 2, 0).reshape(-1, embedding.shape[1]).numpy()


@pytest.mark.parametrize(
    ("source", "grid"),
    [
        ((14, 14), (21, 21)),  # B/16, 224 to 336
        ((14, 14), (18, 18)),  # B/16, 224 to 288
        ((16, 16), (24, 24)),  # L/14, 224 to 336
        ((24, 24), (16, 16)),  # L/14, 336 to 224
        ((37, 37), (16, 16)),  # DINOv2, 518 to 224
        ((14, 14), (10, 20)),
        ((14, 14), (7, 31)),
        ((10, 20), (14, 14)),
        ((7, 7), (1, 1)),
    ],
)
@pytest.mark.parametrize(("method", "prefix"), [("antialiased", 1), ("antialiased", 0), ("plain", 1)])
def test_equals_torch(source, grid, method, prefix):
    size = (source[0] * source[1] + prefix, 48)
    embedding = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    resized = resample(embedding, source, grid, prefix=prefix, method=method)
    assert resized.shape == (grid[0] * grid[1] + prefix, 48)
    np.testing.assert_array_equal(resized[:prefix], embedding[:prefix])
    expected = _torch(embedding[prefix:], source, grid, method == "antialiased")
    np.testing.assert_allclose(resized[prefix:], expected, atol=1e-5)


def test_the_same_grid_changes_nothing():
    embedding = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    np.testing.assert_array_equal(resample(embedding, (7, 7), (7, 7)), embedding)


def test_positions_that_are_no_square():
    with pytest.raises(UserError, match="no grid"):
        resample(np.zeros((52, 8), np.float32), (7, 7), (7, 7))
