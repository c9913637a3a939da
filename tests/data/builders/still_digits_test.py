import numpy as np
import pytest

from inti_jax.data.builders import still_digits
from inti_jax.data.dataset import open_dataset


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("stills")
    still_digits.StillDigits(data_dir=path, frames={"train": 80, "val": 40}).build()
    return path


def test_every_class_is_there_as_often_and_a_video_is_one_frame(data_dir):
    for split, count in (("train", 2), ("val", 1)):
        dataset = open_dataset("still_digits", data_dir, split)
        examples = [dataset[i] for i in range(len(dataset))]
        assert np.bincount([example.label for example in examples]).tolist() == [count] * 40
        assert {(example.frames, example.height, example.width) for example in examples} == {(1, 64, 64)}
    assert dataset.labels[:2] == ("0 at the top left", "0 at the top right")


def test_the_digit_is_where_its_label_says():
    for number in range(0, 400, 7):
        frame = still_digits.render("train", number)[0].astype(float).mean(axis=-1)
        ink = np.abs(frame - np.median(frame))
        ink[ink < 0.4 * ink.max()] = 0
        row, column = (np.arange(64) @ ink.sum(axis=1 - axis) / ink.sum() for axis in (0, 1))
        # The middle of the scan is in its quarter; its ink leans to one side by up to 3 pixels.
        vertical, horizontal = still_digits.LABELS[number % 40].split(" at the ")[1].split()
        assert row < 35 if vertical == "top" else row > 29, number
        assert column < 35 if horizontal == "left" else column > 29, number


def test_a_frame_is_a_function_of_its_number():
    np.testing.assert_array_equal(still_digits.render("val", 3), still_digits.render("val", 3))
    assert (still_digits.render("val", 3) != still_digits.render("train", 3)).any()
