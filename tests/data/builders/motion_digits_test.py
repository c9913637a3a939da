import numpy as np
import pytest

from inti_jax.data import manifest, sampling
from inti_jax.data.builders import digits, motion_digits
from inti_jax.data.codec import decode
from inti_jax.data.dataset import open_dataset


def _by_id(data_dir, split):
    dataset = open_dataset("motion_digits", data_dir, split)
    examples = [dataset[i] for i in range(len(dataset))]
    return {example.id: example for example in examples}, dataset.labels


def _centred_clip(example):
    indices = sampling.clip_indices(example.frames, num_frames=8, sampling="dense", stride=2)
    return decode.decode_frames(example.video, indices, example.frames)


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_clip_has_a_partner_with_the_same_frames_reversed(motion_data, split):
    examples, labels = _by_id(motion_data, split)
    frames = {video_id: _centred_clip(example) for video_id, example in examples.items()}
    partner = {a: b for pair in motion_digits.PAIRS for a, b in (pair, pair[::-1])}
    for video_id, example in examples.items():
        number, label = video_id.rsplit("-", 1)
        assert labels[example.label] == label
        np.testing.assert_array_equal(frames[video_id], frames[f"{number}-{partner[label]}"][::-1])
        assert len({frame.tobytes() for frame in frames[video_id]}) == 8  # it moves


def test_it_is_the_same_dataset_every_time(motion_data, tmp_path):
    directory = motion_digits.MotionDigits(data_dir=tmp_path, movements={"train": 20, "val": 10}).build()
    first = motion_data / "motion_digits" / directory.name
    assert manifest.read(directory) == manifest.read(first)
    shards = sorted(path.name for path in directory.glob("*array_record*"))
    assert len(shards) == 2
    for shard in shards:
        assert (directory / shard).read_bytes() == (first / shard).read_bytes()


def test_classes_are_balanced_and_videos_as_promised(motion_data):
    for split, count in (("train", 40), ("val", 20)):
        examples, labels = _by_id(motion_data, split)
        assert len(examples) == count
        assert labels == motion_digits.LABELS
        assert np.bincount([example.label for example in examples.values()]).tolist() == [count // 10] * 10
        for example in examples.values():
            assert (example.frames, example.fps, example.height, example.width) == (19, 12, 64, 64)
    movements = motion_digits.MOVEMENTS
    assert (2 * movements["train"], 2 * movements["val"]) == (4000, 1000)


def test_rendering_is_a_function_of_split_and_number():
    first = motion_digits.render("train", 3)
    np.testing.assert_array_equal(first, motion_digits.render("train", 3))
    assert not np.array_equal(first, motion_digits.render("val", 3))
    assert not np.array_equal(first, motion_digits.render("train", 8))


def _digit_path(number):
    """Where the digit is in each frame, [T, 2] as x and y, its area and its contrast, by its pixels."""
    frames = motion_digits.render("train", number).astype(float)
    ground = np.median(frames.reshape(19, -1, 3), axis=1).mean(0)
    distance = np.abs(frames - ground).sum(-1)
    weight = np.where(distance > 0.25 * distance.max(), distance, 0)
    y, x = np.mgrid[:64, :64]
    total = weight.sum((1, 2)) + 1e-6
    path = np.stack([(weight * x).sum((1, 2)), (weight * y).sum((1, 2))], -1) / total[:, None]
    return path, (weight > 0).sum((1, 2)), distance.max((1, 2))


@pytest.mark.parametrize("repeat", range(4))
def test_movements_are_what_their_first_label_says(repeat):
    numbers = [5 * repeat + pair for pair in range(5)]
    (right, _, _), (down, _, _), (around, _, _) = (_digit_path(number) for number in numbers[:3])
    assert right[-1, 0] - right[0, 0] > 24 and np.ptp(right[:, 1]) < 4
    assert down[-1, 1] - down[0, 1] > 24 and np.ptp(down[:, 0]) < 4
    steps = np.diff(around, axis=0)
    turns = steps[:-1, 0] * steps[1:, 1] - steps[:-1, 1] * steps[1:, 0]
    assert (turns > 0).mean() > 0.8  # to the right, with y downwards: clockwise
    _, area, _ = _digit_path(numbers[3])
    assert area[-1] > 4 * area[0]
    _, _, contrast = _digit_path(numbers[4])
    assert contrast[-1] > 2.5 * contrast[0]


def test_val_digits_are_not_in_train():
    train = {digit.tobytes() for digit in digits.glyphs("train")}
    assert not any(digit.tobytes() in train for digit in digits.glyphs("val"))
