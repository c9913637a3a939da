import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inti_jax.config import ConfigError, Mix
from inti_jax.training import mixing
from tests.configs import tiny

VIDEO = jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 2, 16, 12, 3), np.uint8))
MASK = jnp.ones(8, bool)


def mixed(video, mask, mix, seed):
    return mixing.mix(video, mask, mixing.draw(mix, len(video) // 2, jax.random.key(seed)))


def test_mixup_is_the_weighted_mean_of_a_pair():
    found = mixed(VIDEO, MASK, Mix(mixup=0.8), 0)
    own = np.asarray(found.own)[:, None, None, None, None]
    expected = own * np.asarray(VIDEO, float) + (1 - own) * np.asarray(mixing.partners(VIDEO), float)
    np.testing.assert_allclose(found.video, expected, atol=0.51)  # rounded
    np.testing.assert_array_equal(found.own[0::2], found.own[1::2])
    assert np.unique(found.own).size == 4


def test_cutmix_takes_one_box_of_the_partner_in_all_frames():
    found = mixed(VIDEO, MASK, Mix(cutmix=1.0), 1)
    partner = np.asarray(mixing.partners(VIDEO))
    from_partner = (np.asarray(found.video) == partner).all(axis=-1)
    from_own = (np.asarray(found.video) == np.asarray(VIDEO)).all(axis=-1)
    assert (from_partner | from_own).all()
    for row in range(8):
        box = from_partner[row, 0]
        np.testing.assert_array_equal(from_partner[row, 1], box)
        rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
        assert box.sum() == rows.size * columns.size  # a rectangle
        assert found.own[row] == pytest.approx(1 - box.mean(), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1), st.lists(st.booleans(), min_size=8, max_size=8))
def test_shares_are_shares_and_what_did_not_decode_is_mixed_with_nothing(seed, mask):
    found = mixed(VIDEO, jnp.asarray(mask), Mix(mixup=0.8, cutmix=1.0), seed)
    assert (found.own >= 0).all() and (found.own <= 1).all()
    whole = np.repeat(np.asarray(mask).reshape(-1, 2).all(1), 2)
    np.testing.assert_array_equal(found.own[~whole], 1)
    np.testing.assert_array_equal(found.video[~whole], VIDEO[~whole])


def test_the_probability_is_that_of_a_pair():
    pairs = 1000
    video = jnp.zeros((2 * pairs, 1, 1, 1, 3), jnp.uint8)
    found = mixed(video, jnp.ones(2 * pairs, bool), Mix(mixup=1.0, probability=0.3), 0)
    assert (np.asarray(found.own[::2]) < 1).mean() == pytest.approx(0.3, abs=0.05)


def test_pairs_need_an_even_number():
    with pytest.raises(ConfigError, match="each part should have an even number of videos"):
        tiny(train__mix__mixup=0.8, train__global_batch=6, train__accumulate=2)
