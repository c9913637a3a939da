"""Features of files, on a run's directory."""

import sys

import numpy as np
import pytest

import inti_jax
from inti_jax import features
from inti_jax.data import pipeline
from inti_jax.data.codec import decode
from inti_jax.data.dataset import open_dataset
from inti_jax.errors import UsageError, UserError

pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture
def files(motion_data, tmp_path):
    """Three videos, the one in the middle of which does not decode."""
    dataset = open_dataset("motion_digits", motion_data, "val")
    paths = [tmp_path / f"{name}.mp4" for name in "abc"]
    for index, path in enumerate(paths):
        path.write_bytes(b"no video" if index == 1 else dataset[index].video)
    return paths


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["features", *map(str, words)])
    features.main()


def clips_of(model, path):
    """The clips that the evaluation takes of a file, decoded whole, and their frame numbers."""
    settings = model.config
    video = path.read_bytes()
    info, _ = decode.decode_and_validate(video, lambda frames: np.arange(1))
    indices = pipeline.view_indices(info.frames, settings.data, settings.eval)
    frames = decode.decode_frames(video, indices, info.frames)
    return frames.reshape(settings.eval.clips, -1, *frames.shape[1:]), indices.reshape(
        settings.eval.clips, -1
    )


def test_features_are_those_of_the_model_over_all_views(trained_run, files, tmp_path, monkeypatch):
    out = tmp_path / "f.npz"
    with pytest.raises(UserError, match="1 of 3 videos have no features"):
        command(monkeypatch, "--checkpoint", trained_run, *files, "--out", out)
    found = np.load(out)  # without pickles
    assert sorted(found) == ["features", "missing", "reasons", "videos"]
    assert found["videos"].tolist() == [str(files[0]), str(files[2])]
    assert found["missing"].tolist() == [str(files[1])] and "Invalid data" in found["reasons"][0]
    assert found["features"].dtype == np.float32 and found["features"].shape == (2, 96)
    model = inti_jax.load(trained_run)
    for row, path in zip(found["features"], (files[0], files[2]), strict=True):
        clips, _ = clips_of(model, path)
        np.testing.assert_allclose(row, model.features(clips).mean(axis=0), atol=1e-5)
    assert sorted(tmp_path.iterdir()) == sorted([*files, out])


def test_frames_have_features_whose_mean_is_the_videos(trained_run, files, tmp_path, monkeypatch):
    command(
        monkeypatch, "--checkpoint", trained_run, files[0], files[2], "--frames", "--out", tmp_path / "f.npz"
    )
    command(monkeypatch, "--checkpoint", trained_run, files[0], files[2], "--out", tmp_path / "v.npz")
    frames, videos = np.load(tmp_path / "f.npz"), np.load(tmp_path / "v.npz")
    model = inti_jax.load(trained_run)
    halved = model.config.data.num_frames // 2  # InTI after one block
    rows = model.config.eval.clips * halved
    assert frames["offsets"].tolist() == [0, rows, 2 * rows]
    assert frames["features"].shape == (2 * rows, 96) and frames["frames"].shape == (2 * rows, 2)
    for video, start in enumerate((0, rows)):
        mean = frames["features"][start : start + rows].mean(axis=0)
        np.testing.assert_allclose(mean, videos["features"][video], atol=1e-5)
    _, indices = clips_of(model, files[0])
    assert frames["frames"][:rows].tolist() == indices.reshape(-1, 2).tolist()


def test_more_clips_of_a_video_can_be_asked_for(trained_run, files, tmp_path, monkeypatch):
    out = tmp_path / "f.npz"
    command(monkeypatch, "--checkpoint", trained_run, files[0], "--clips", "5", "--frames", "--out", out)
    found = np.load(out)
    assert found["features"].shape == (5 * 4, 96)
    assert found["frames"].min() == 0 and found["frames"].max() >= 17  # of 19 frames


def test_videos_without_any_features_are_a_file_too(trained_run, files, tmp_path, monkeypatch):
    out = tmp_path / "f.npz"
    out.write_text("earlier")
    with pytest.raises(UserError, match=r"nowhere"):
        command(monkeypatch, "--checkpoint", tmp_path / "nowhere", files[1], "--out", out)
    assert out.read_text() == "earlier"
    with pytest.raises(UserError, match="1 of 1 videos have no features"):
        command(monkeypatch, "--checkpoint", trained_run, files[1], "--frames", "--out", out)
    found = np.load(out)
    assert found["features"].shape == (0, 96) and found["frames"].shape == (0, 2)
    assert found["videos"].shape == (0,) and found["offsets"].tolist() == [0]


def test_wrong_usage_is_said_first(files, tmp_path, monkeypatch):
    for words in (["--out", "f.npy"], ["--out", tmp_path / "f.npz", "--clips", "0"]):
        with pytest.raises(UsageError, match=r"end in \.npz|at least 1"):
            command(monkeypatch, "--checkpoint", "run", files[0], *words)
