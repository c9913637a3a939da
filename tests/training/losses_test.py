"""Losses against independent references; class weights of each class, and in the loss of an epoch."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inti_jax.config import ConfigError, LossName, Train
from inti_jax.training import losses
from inti_jax.training.losses import Targets

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
        ((1.0, 2.0), r"has 2 weights, but the dataset has 4 classes: give one weight"),
        ((0.0, 0.0, 1.0, 0.0), r"it is 0 for all classes with training videos"),
    ],
)
def test_weights_that_do_not_suit_the_dataset_are_refused(weights, message):
    with pytest.raises(ConfigError, match=message):
        losses.class_weights(weights, COUNTS)


def test_every_name_of_a_loss_makes_one():
    assert set(losses.LOSSES) == set(get_args(LossName))


def test_the_contrastive_loss_is_actionclips():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    videos, texts = rng.normal(size=(6, 16)), rng.normal(size=(4, 16))
    labels, mask = np.array([2, 0, 2, 1, 0, 2]), np.array([True, True, True, True, False, True])
    logits = 3 * videos @ texts.T

    # From the paper's equations, by the embeddings of the videos that decoded and of their texts.
    similarity = 3 * torch.tensor(videos[mask] @ texts[labels[mask]].T)
    same = torch.tensor(labels[mask][:, None] == labels[mask]).double()
    divergences = [
        torch.nn.functional.kl_div(
            torch.log_softmax(scores, dim=1), same / same.sum(dim=1, keepdim=True), reduction="batchmean"
        )
        for scores in (similarity, similarity.T)
    ]

    contrastive = losses.make(Train(loss="contrastive", steps=1))
    targets = Targets(jnp.asarray(labels), jnp.asarray(mask), None)
    each = contrastive(jnp.asarray(logits, jnp.float32), targets)
    assert each[mask].mean() == pytest.approx(float(sum(divergences)) / 2, rel=1e-5)

    grads = jax.grad(lambda logits: (contrastive(logits, targets) * mask).sum())(jnp.asarray(logits))
    assert np.isfinite(grads).all() and not grads[4].any() and not grads[:, 3].any()
    # A batch in which nothing decoded has a loss that its mask can leave out.
    nothing = targets._replace(label=jnp.full(6, -1), mask=jnp.zeros(6, bool))
    assert np.isfinite(contrastive(jnp.asarray(logits, jnp.float32), nothing)).all()


def test_the_contrastive_loss_of_different_classes_is_clips():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4)), jnp.float32)
    labels = jnp.asarray([3, 1, 0, 2])
    each = losses.make(Train(loss="contrastive", steps=1))(logits, Targets(labels, jnp.ones(4, bool), None))
    batch = logits[:, labels]
    clip = [losses.cross_entropy(scores, jnp.arange(4), 0.0).mean() for scores in (batch, batch.T)]
    assert each.mean() == pytest.approx(float(sum(clip)) / 2, rel=1e-5)
