"""Some videos of a split: which they are, and that they are the same each time."""

import pickle

import numpy as np
import pytest

from inti_jax.data.dataset import Example, Subset, VideoDataset, open_dataset


class Split(VideoDataset):
    """A split of videos that have their index as their id; `classes` has the class of each."""

    def __init__(self, classes):
        self.classes, self.labels, self.multi_label = classes, ("a", "b", "c"), classes.ndim == 2

    def __len__(self):
        return len(self.classes)

    def __getitem__(self, index):
        return Example(str(index), 0, b"", 8, 8.0, 32, 32)


SHUFFLED = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [60, 30, 10])).astype(np.int32)


@pytest.mark.parametrize("count", [1, 7, 10, 50, 99, 100])
def test_each_class_has_its_share_of_different_videos(count):
    found = Subset(Split(SHUFFLED), count)
    assert len(found) == count and sorted(set(found.index)) == found.index.tolist()
    counts = np.bincount(SHUFFLED[found.index], minlength=3)
    assert np.abs(counts - count * np.array([0.6, 0.3, 0.1])).max() < 1
    assert [int(found[place].id) for place in range(count)] == found.index.tolist()


def test_of_several_labels_the_first_counts():
    rows = np.eye(3, dtype=bool)[SHUFFLED] | np.array([False, False, True])
    assert Subset(Split(rows), 12).index.tolist() == Subset(Split(SHUFFLED), 12).index.tolist()


def test_a_process_that_gets_it_reads_the_same_videos(motion_data):
    dataset = open_dataset("motion_digits", motion_data, "val")
    found = Subset(dataset, 10)
    assert sorted(dataset.classes[found.index]) == list(range(10))
    again = pickle.loads(pickle.dumps(found))
    assert again[3] == found[3] == dataset[int(found.index[3])]
    assert (again.labels, again.multi_label) == (dataset.labels, False)
