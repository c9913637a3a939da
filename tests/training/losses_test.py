"""Losses against independent references; class weights of each class, and in the loss of an epoch."""

import dataclasses
import json
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inti_jax import predict
from inti_jax.config import ConfigError, LossName, Train
from inti_jax.config.backbones import BACKBONES
from inti_jax.data import pipeline
from inti_jax.data.builders.base import Clip
from inti_jax.data.builders.folder import Folder
from inti_jax.data.dataset import open_dataset
from inti_jax.runs import checkpoint
from inti_jax.runs.writers.jsonl import read_metrics
from inti_jax.training import loop, losses
from inti_jax.training.losses import Targets
from tests.configs import tiny
from tests.data import clips

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


@pytest.mark.parametrize(
    "weights", [None, np.linspace(0.5, 3, 5, dtype=np.float32)], ids=["equal", "weighted"]
)
def test_binary_cross_entropy_is_torchs(weights):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits, label = rng.normal(scale=20, size=(6, 5)).astype(np.float32), rng.random((6, 5)) < 0.4
    settings = Train(loss="binary_cross_entropy", label_smoothing=0.1, steps=1)
    own = np.array([1, 1, 0.3, 0.8, 0.5, 0.5], np.float32)
    each = losses.make(settings, weights)(
        jnp.asarray(logits), Targets(jnp.asarray(label), jnp.ones(6, bool), jnp.asarray(own))
    )
    # A mixed video has the shares of the labels of both.
    mixed = own[:, None] * label + (1 - own[:, None]) * label[[1, 0, 3, 2, 5, 4]]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(logits),
        torch.tensor(0.9 * mixed + 0.05, dtype=torch.float32),
        pos_weight=None if weights is None else torch.tensor(weights),
        reduction="none",
    )
    np.testing.assert_allclose(each, expected.mean(dim=1), rtol=1e-5)


def test_positives_weigh_by_what_they_are_rarer_than_negatives():
    weights = losses.positive_weights("inverse", np.array([1.0, 3.0, 0.0, 12.0]), 12)
    np.testing.assert_allclose(weights, [11, 3, 1, 0])
    assert losses.positive_weights("none", COUNTS, 12) is None
    np.testing.assert_allclose(losses.positive_weights((1.0, 2.0, 0.0, 4.0), COUNTS, 12), [1, 2, 0, 4])
    with pytest.raises(ConfigError, match="has 1 weights, but the dataset has 4 classes"):
        losses.positive_weights((1.0,), COUNTS, 12)


@pytest.fixture(scope="module")
def several_labels(tmp_path_factory):
    """Prepare `acts`: 8 training and 6 validation videos with several labels each, one broken."""
    place = tmp_path_factory.mktemp("acts")
    splits = {"train": [], "val": []}
    own = (
        "run",
        "run;turn left",
        "jump;turn left",
        "turn right",
        "turn right;run",
        "jump;run",
        "jump",
        "run",
    )
    for number, label in enumerate((*own, *own[:6])):
        path = place / f"{number}.mp4"
        path.write_bytes(clips.encode(clips.moving_square(8 + number, 40, 40)))
        split = "train" if number < len(own) else "val"
        splits[split].append(Clip(path.name, label, path, path.stat().st_size))
    labels = ("jump", "run", "swim", "turn left", "turn right")
    Folder(data_dir=place, name="acts", labels=labels, splits=splits, multi_label=True).build()
    return place


SEVERAL = {"data__name": "acts", "train__loss": "binary_cross_entropy", "data__stride": 1}


def test_batches_have_a_row_of_labels_for_each_video(several_labels):
    dataset = open_dataset("acts", several_labels, "train")
    data = tiny(several_labels, **SEVERAL, data__flip=True).data
    with pipeline.train_batches(dataset, data, seed=0, global_batch=8, num_steps=4) as batches:
        drawn = list(batches)
    mirrored = np.array([0, 1, 2, 4, 3])
    turned = 0
    for batch in drawn:
        for index, label in zip(batch["index"], batch["label"], strict=True):
            same = dataset.classes[index]
            assert label.tolist() in (same.tolist(), same[mirrored].tolist())
            turned += label.tolist() != same.tolist()
    assert turned > 0


def test_a_video_with_a_label_that_may_not_be_reversed_stays(several_labels):
    dataset = open_dataset("acts", several_labels, "train")
    changes = {"data__reverse": True, "data__reverse_labels": ("turn left", "turn right", "run")}
    data = tiny(several_labels, **SEVERAL, **changes).data
    with pipeline.train_batches(dataset, data, seed=0, global_batch=8, num_steps=4) as batches:
        drawn = [
            (dataset.classes[index], label)
            for batch in batches
            for index, label in zip(batch["index"], batch["label"], strict=True)
        ]
    turned = [(was, now) for was, now in drawn if not np.array_equal(was, now)]
    assert turned
    for was, now in turned:
        assert not was[[0, 2]].any()
        np.testing.assert_array_equal(now, was[[0, 1, 2, 4, 3]])


def test_a_run_on_videos_with_several_labels(several_labels, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", dataclasses.replace(BACKBONES["tiny"], layers=1))
    settings = tiny(
        several_labels,
        **SEVERAL,
        data__flip=True,
        train__accumulate=2,
        mesh__data=4,
        mesh__tensor=2,
        train__mix__mixup=0.8,
        train__label_smoothing=0.1,
        train__class_weights="inverse",
        train__eval_every_steps=2,
        train__early_stop__patience=2,
        train__early_stop__metric="map",
        eval__clips=2,
    )
    loop.train(settings, tmp_path)
    found = [entry for entry in read_metrics(tmp_path) if entry["split"] == "val"]
    assert [entry["step"] for entry in found] == [2, 4]
    for entry in found:
        assert 0 < entry["map"] <= 1 and entry["evaluated"] == 6 and "top1" not in entry
        assert (entry["classes"], entry["classes_without_videos"]) == (4, 1)
    best = max(found, key=lambda entry: (entry["map"], entry["step"]))
    assert checkpoint.find(tmp_path, "best") == best["step"]
    (row,) = json.loads((tmp_path / "report.json").read_text())
    assert row["map"] == found[-1]["map"] and row["top1"] is None
    page = (tmp_path / "report.html").read_text()
    assert "<th>mAP</th>" in page and "<th>top-1</th>" not in page

    (result,) = predict.predict_files(tmp_path, [several_labels / "9.mp4"], topk=5)
    probabilities = [entry["probability"] for entry in result["predictions"]]
    assert len(probabilities) == 5 and sorted(probabilities, reverse=True) == probabilities
    assert sum(probabilities) > 1.2  # each is that of a sigmoid

    with pytest.raises(ConfigError, match='one label or more: set it to "binary_cross_entropy"'):
        loop.train(tiny(several_labels, **SEVERAL | {"train__loss": "cross_entropy"}), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_single_label_cannot_have_the_loss_of_several(motion_data, tmp_path):
    with pytest.raises(ConfigError, match='has one label: set it to "cross_entropy" or "contrastive"'):
        loop.train(tiny(motion_data, train__loss="binary_cross_entropy"), tmp_path)
