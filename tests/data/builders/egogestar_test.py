"""EgoGestAR: which videos are in which fold, and that no background is on both sides of one."""

import collections
import itertools
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from inti_jax.data import manifest
from inti_jax.data.builders import egogestar, registry
from inti_jax.data.builders.tree import Tree
from tests.commands import prepare
from tests.data import clips

VIDEOS = Path(__file__).parents[4] / "shared" / "egogestar"
LABELS = ("carret", "circlecc", "del", "down", "left", "right", "square", "star", "tick", "up")


def _fold(number):
    annotations = registry.OFFICIAL["egogestar"].annotations(Tree(Path(__file__).parent), number)
    assert annotations.labels == LABELS
    return {split: [row.id for row in rows] for split, rows in annotations.splits.items()}


FOLDS = [_fold(number) for number in range(1, 6)]


def test_each_video_is_validated_in_one_fold_and_each_fold_has_about_a_fifth_of_each_label():
    assert sorted(name for fold in FOLDS for name in fold["val"]) == sorted(egogestar.backgrounds())
    for fold in FOLDS:
        assert len(fold["train"]) + len(fold["val"]) == 217 and set(fold["train"]).isdisjoint(fold["val"])
        assert 39 <= len(fold["val"]) <= 47
        counts = collections.Counter(name.partition("_")[0] for name in fold["val"])
        assert set(counts) == set(LABELS) and set(counts.values()) <= {3, 4, 5, 6}


def test_each_background_is_in_one_fold():
    folds = [background for fold in egogestar.FOLDS for background in fold]
    assert len(folds) == len(set(folds))
    assert set(folds) == set(egogestar.backgrounds().values())


def test_preparing_a_fold(tmp_path, capsys):
    place = tmp_path / "EgoGestAR" / "testvideo"
    place.mkdir(parents=True)
    for name in ("left_1.mp4", "left_8.MOV", "up_12.avi", "star_18.mp4", "unclassified_3.mp4"):
        container = "avi" if name.endswith(".avi") else "mp4"
        video = clips.encode(clips.moving_square(4), codec="mpeg4", container=container)
        (place / name).write_bytes(video)
    options = ("--source", tmp_path / "EgoGestAR", "--data_dir", tmp_path, "--fold", 2, "--name", "second")
    assert prepare("egogestar", *options) == 0
    assert "38 of the 39 videos of `val` are not on disk" in capsys.readouterr().err
    contents = manifest.read(tmp_path / "second" / "1.0.0")
    assert contents.labels == LABELS and contents.sampling == "uniform"
    found = {split: {video.id: video.label for video in contents.splits[split].videos} for split in FOLDS[0]}
    assert found == {"train": {"left_1": "left", "up_12": "up"}, "val": {"left_8": "left"}}


@pytest.mark.skipif(not VIDEOS.is_dir(), reason=f"the videos are not in {VIDEOS}")
def test_no_video_has_the_background_of_one_in_another_part_of_its_fold():
    similarity = _similarities(names := sorted(egogestar.backgrounds()))
    own = egogestar.backgrounds()
    backgrounds = np.array([own[name] for name in names])
    same = backgrounds[:, None] == backgrounds[None, :]

    def nearest(among: np.ndarray) -> np.ndarray:
        return np.where(among, similarity, -1).max(axis=1)

    def apart(part: np.ndarray) -> np.ndarray:
        """The similarity of each video to the nearest one that trains where it is validated."""
        return nearest(part[:, None] != part[None, :])

    fold = np.array([next(k for k, fold in enumerate(FOLDS) if name in fold["val"]) for name in names])
    limit = 0.82
    assert apart(fold).max() < limit
    # The measure sees what is the same: in one background, and in folds of fifths by number.
    assert (nearest(same) > limit).mean() > 0.6
    by_number = np.array([(int(name.partition("_")[2]) - 1) * 5 // 22 for name in names])
    assert (apart(by_number) > limit).mean() > 0.2


def _similarities(names: list[str]) -> np.ndarray:
    """The correlations of the videos' middle frames at 16 x 12 pixels, 0 for a video with itself."""
    pictures = []
    for name in names:
        with av.open(str(VIDEOS / f"{name}.mp4")) as container:
            middle = container.streams.video[0].frames // 2
            frame = next(itertools.islice(container.decode(video=0), middle, None))
        picture = np.asarray(frame.to_image().resize((16, 12), Image.Resampling.BOX), np.float64)
        picture = (picture - picture.mean(axis=(0, 1))).ravel()
        pictures.append(picture / np.linalg.norm(picture))
    similarity = np.stack(pictures) @ np.stack(pictures).T
    np.fill_diagonal(similarity, 0)
    return similarity
