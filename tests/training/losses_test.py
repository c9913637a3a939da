"""Class weights: of each class, and in the loss of an epoch."""

import numpy as np
import pytest

from inti_jax.config import ConfigError
from inti_jax.training import losses

COUNTS = np.array([1.0, 3.0, 0.0, 12.0])


def test_weights_by_the_inverse_frequency_give_each_class_an_equal_part():
    weights = losses.class_weights("inverse", COUNTS)
    present = COUNTS > 0
    np.testing.assert_allclose(weights[present], COUNTS.sum() / (3 * COUNTS[present]))
    assert weights[2] == 0 and weights.dtype == np.float32
    assert (weights * COUNTS).sum() / COUNTS.sum() == pytest.approx(1)


def test_given_weights_keep_their_ratios_and_the_losses_scale():
    weights = losses.class_weights((1.0, 2.0, 7.0, 0.0), COUNTS)
    assert weights[1] / weights[0] == pytest.approx(2) and weights[3] == 0
    assert (weights * COUNTS).sum() / COUNTS.sum() == pytest.approx(1)
    assert losses.class_weights("none", COUNTS) is None
    np.testing.assert_allclose(losses.class_weights((3.0,) * 4, COUNTS), 1)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0, 2.0), r"has 2 weights, and the dataset 4 classes: give one for each"),
        ((0.0, 0.0, 1.0, 0.0), r"it is 0 for all classes with training videos"),
    ],
)
def test_weights_that_do_not_suit_the_dataset_are_refused(weights, message):
    with pytest.raises(ConfigError, match=message):
        losses.class_weights(weights, COUNTS)
