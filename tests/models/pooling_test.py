"""Poolings on tokens that stand for several patches."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from inti_jax.config.backbones import BACKBONES
from inti_jax.models.rngs import make_rngs
from inti_jax.models.vit import ImageTower
from tests.configs import FAMILIES
from tests.cost.compiled import call, initialize


@pytest.mark.parametrize("family", ["patches", "siglip"])
def test_a_token_of_several_patches_counts_as_often(family):
    size = dataclasses.replace(BACKBONES["tiny"], layers=1, **FAMILIES[family])
    tower = initialize(lambda: ImageTower(size, rngs=make_rngs(0)))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 96), np.float32))
    sizes = jnp.asarray([[2.0, 1, 3], [1, 4, 1]])
    merged = call(tower, x, sizes, method="reduce")
    for frame, counts, found in zip(x, sizes.astype(int), merged, strict=True):
        repeated = jnp.repeat(frame, counts, axis=0, total_repeat_length=6)[None]
        np.testing.assert_allclose(found, call(tower, repeated, method="reduce")[0], atol=1e-5)
    assert np.abs(merged - call(tower, x, method="reduce")).max() > 1e-3
