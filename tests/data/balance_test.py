"""Class-balanced sampling: what an epoch is, and that it is a function of the seed and its number."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inti_jax import config
from inti_jax.data import balance, pipeline
from inti_jax.data.dataset import open_dataset

CLASSES = st.lists(st.integers(0, 6), min_size=1, max_size=60).map(np.array)


@settings(deadline=None, max_examples=50)
@given(CLASSES, st.integers(0, 99))
def test_an_epoch_has_every_class_equally_often_and_its_videos_in_turn(classes, seed):
    epochs = [balance.Balanced(classes, seed).epoch(number) for number in range(4)]
    present = np.unique(classes)
    for epoch in epochs:
        assert len(epoch.video) == len(classes)
        counts = Counter(classes[epoch.video].tolist())
        assert len(counts) == min(len(present), len(classes))
        assert max(counts.values()) - min(counts.values()) <= 1
        # A video is drawn again only when all others of its class have been.
        assert len(set(zip(epoch.video.tolist(), epoch.again.tolist(), strict=True))) == len(classes)
    # Also over several epochs, which go on where the last one stopped.
    for end in range(1, 5):
        seen = Counter(np.concatenate([epoch.video for epoch in epochs[:end]]).tolist())
        totals = [sum(seen[v] for v in np.flatnonzero(classes == k).tolist()) for k in present]
        assert max(totals) - min(totals) <= 1
        for k in present:
            times = [seen[video] for video in np.flatnonzero(classes == k).tolist()]
            assert max(times) - min(times) <= 1


def test_an_epoch_is_a_function_of_the_seed_and_its_number():
    classes = np.array([0] * 50 + [1] * 3 + [4])
    first = balance.Balanced(classes, 3)
    expected = [first.epoch(number) for number in range(6)]
    again = pickle.loads(pickle.dumps(balance.Balanced(classes, 3)))
    for number in (5, 0, 3):
        np.testing.assert_array_equal(again.epoch(number).video, expected[number].video)
    assert (balance.Balanced(classes, 4).epoch(0).video != expected[0].video).any()
    assert (expected[0].video != expected[1].video).any()


def test_rows_of_all_hosts_are_one_order_and_no_clip_comes_twice():
    classes = np.array([0] * 17 + [1] * 2 + [2])
    options = {"seed": 1, "global_batch": 6, "num_steps": 20, "repeats": 2}
    whole = pipeline.TrainOrder(20, **options, balanced=balance.Balanced(classes, 1))
    elements = [whole[k] for k in range(len(whole))]
    assert len(set(elements)) == len(elements) == 120
    hosts = [
        pipeline.TrainOrder(20, **options, rows=rows, balanced=balance.Balanced(classes, 1))
        for rows in ((0, 3, 4), (1, 2, 5))
    ]
    found = {}
    for host in hosts:
        for k in range(len(host)):
            found[k // 3 * 6 + host.rows[k % 3]] = host[k]
    assert [found[k] for k in range(120)] == elements


def test_counts_are_those_of_the_labels_that_clips_are_trained_on():
    classes = np.array([0] * 6 + [1] * 2 + [3] * 4)
    labels = ("push left", "push right", "jump", "turn")
    for settings_, expected in (
        ({}, [6, 2, 0, 4]),
        ({"flip": True}, [4, 4, 0, 4]),
        ({"flip": True, "flip_labels": ("jump", "turn")}, [6, 2, 0, 4]),
        ({"reverse": True, "reverse_labels": ("turn",)}, [6, 2, 0, 4]),
        ({"balance": True}, [4, 4, 0, 4]),
    ):
        found = balance.expected_counts(classes, labels, config.Data(**settings_))
        np.testing.assert_array_equal(found, expected)
    labels = ("push left", "push right", "pull left", "pull right")
    for settings_, expected in (
        ({"reverse": True}, [5, 1, 1, 5]),  # a push to the left is a pull to the right backwards
        ({"flip": True, "reverse": True}, [3, 3, 3, 3]),
    ):
        found = balance.expected_counts(classes, labels, config.Data(**settings_))
        np.testing.assert_array_equal(found, expected)


def test_a_dataset_knows_the_class_of_each_video(motion_data):
    dataset = open_dataset("motion_digits", motion_data, "train")
    assert dataset.classes.tolist() == [dataset[index].label for index in range(len(dataset))]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_balanced(motion_data, workers):
    dataset = open_dataset("motion_digits", motion_data, "train")
    cfg = config.Data(name="x", data_dir="x", num_frames=2, resolution=16, workers=workers)
    classes = np.where(np.arange(40) < 4, dataset.classes, dataset.classes[20])
    options = {"seed": 0, "global_batch": 20, "num_steps": 2, "classes": classes}
    with pipeline.train_batches(dataset, cfg, **options) as batches:
        seen = np.concatenate([batch["index"] for batch in batches])
    counts = np.bincount(np.unique(classes[seen], return_inverse=True)[1])
    assert counts.max() - counts.min() <= 1
