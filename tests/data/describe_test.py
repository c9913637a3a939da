import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inti_jax.data import manifest
from inti_jax.data.manifest import Manifest, Split, Video
from tests.commands import prepare


def _video(name: str, label: str, frames: int = 50, fps: float = 25.0, sha256: str = "") -> Video:
    return Video(f"{label}/{name}", label, frames, fps, 240, 320, 1_000, sha256 or f"{label}-{name}")


@pytest.fixture
def dataset(tmp_path) -> Path:
    """Two videos of `val` are of `train`, one with another label; $ and _ are what drawing may trip over."""
    train = [_video(str(number), "a", 25 * (number + 1)) for number in range(4)]
    train += [_video("x", "_b$"), _video("y", "_b$", fps=0.0)]
    val = [_video("copy", "a", sha256="a-1"), _video("other", "_b$", sha256="a-2"), _video("z", "d")]
    splits = {"train": Split.of(train, [manifest.Rejected("a/9.mp4", "why")]), "val": Split.of(val, [])}
    directory = tmp_path / "data" / "mine" / "1.0.0"
    directory.mkdir(parents=True)
    Manifest.of("mine", "1.0.0", ["_b$", "a", "c", "d"], splits, "").write(directory)
    return directory


def _run(capsys, *args: object) -> tuple[int, str, str]:
    status = prepare(*args)
    output = capsys.readouterr()
    return status, output.out, output.err


def test_a_dataset_is_described_and_drawn(dataset, capsys):
    status, out, err = _run(capsys, "--describe", dataset)
    assert status == 0
    for expected in (
        "train: 6 videos, 1 rejected",
        "duration (s): 1.0 to 4.0, median 2.0; 0.2 minutes in all",
        "1 without a frame rate",
        "frames: 25 to 100, median 50; 350 in all",
        "sizes: 320x240 (6)",
        "frames a second: 25 (5), 0 (1)",
        "note: 1 label has no video: `c`",
        "note: 1 label has videos in `val` and none in `train`: `d`",
        "note: 2 videos of `val` are in `train` too, byte for byte: a/copy is a/1, _b$/other is a/2",
        "note: 1 video is listed under two labels: a/2 (a) is _b$/other (_b$)",
        "train and val share 2 videos",
    ):
        assert expected in out, expected
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if len(line.split()) == 3}
    assert rows["label"] == ["train", "val"] and rows["a"] == ["4", "1"] and rows["c"] == ["0", "0"]
    assert str(dataset / "describe.png") in err
    picture = np.asarray(Image.open(io.BytesIO((dataset / "describe.png").read_bytes())).convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10  # something is drawn, in several colours


def test_as_json_without_a_picture(dataset, capsys):
    status, out, _ = _run(capsys, "--describe", dataset, "--json")
    assert status == 0 and not (dataset / "describe.png").exists()
    found = json.loads(out)
    (only,) = found["datasets"]
    assert only["splits"]["train"]["seconds"] == {
        "min": 1.0, "median": 2.0, "max": 4.0, "total": 12.0, "unknown": 1,
    }  # fmt: skip
    assert only["labels"][1] == {"label": "a", "train": 4, "val": 1}
    assert found["overlap"] == [{"splits": ["train", "val"], "videos": 2}]
    assert [place["id"] for place in found["copies"][0]] == ["a/1", "a/copy"]


def test_the_newest_version_is_meant_by_the_datasets_name(dataset, capsys):
    assert (
        _run(capsys, "--describe", dataset.parent, "--json")[1]
        == _run(capsys, "--describe", dataset, "--json")[1]
    )


def test_two_datasets_are_compared(dataset, tmp_path, capsys):
    """A test set that was prepared on its own, of the same name as the other."""
    directory = tmp_path / "test" / "mine" / "1.0.0"
    directory.mkdir(parents=True)
    split = Split.of([_video("again", "a", sha256="a-3"), _video("new", "a")], [])
    Manifest.of("mine", "1.0.0", ["a"], {"train": split}, "").write(directory)
    picture = tmp_path / "both.png"
    status, out, _ = _run(capsys, "--describe", dataset, directory, "--out", picture)
    assert status == 0 and picture.stat().st_size > 1_000
    assert f"{dataset}/train and {directory}/train share 1 video, byte for byte" in out
    assert f"{dataset}/val and {directory}/train share no videos" in out


@pytest.mark.parametrize(
    ("args", "status", "reason"),
    [
        (["--describe"], 2, "expected at least one argument"),
        (["--describe", "x"], 1, "manifest.json cannot be read"),
        (["--describe", "x", "--decode"], 2, "--describe takes --out and --json only, not decode"),
        (["--describe", "x", "--out", "x.pdf"], 2, "should end in .png"),
        (["folder", "--source", "s", "--data_dir", "d", "--json"], 2, "--json needs --describe"),
    ],
)
def test_wrong_usage(args, status, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found, _, err = _run(capsys, *args)
    assert found == status and reason in err
    assert not any(tmp_path.iterdir())
