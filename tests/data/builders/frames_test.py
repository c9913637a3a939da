"""Frame folders as videos: which are recognised, what is encoded, and what is said of the others."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from inti_jax.data import dataset, manifest
from inti_jax.data.builders import folder, frames, locate
from inti_jax.data.builders.frames import Frames, find_series
from inti_jax.data.codec import decode
from inti_jax.data.codec.encode import encode
from tests.commands import prepare
from tests.data import clips


def _write(folder_: Path, images: np.ndarray, name: str = "img_{:05d}.png", first: int = 1) -> Path:
    folder_.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images, start=first):
        Image.fromarray(image).save(folder_ / name.format(number))
    return folder_


def _reason(source: Path, limit: int | None = None) -> str:
    with pytest.raises(decode.DecodeError) as raised:
        frames.read(Frames(source, Fraction(25), limit))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_frame_folders_are_videos_of_a_directory(tmp_path, capsys):
    source = tmp_path / "videos"
    images = clips.moving_square(12, 48, 65)  # an odd width
    _write(source / "a" / "one", images, "{}.png", first=0)  # 10 comes after 9
    _write(source / "a" / "deep" / "two", images[::-1], "frame{:03d}.JPG")
    _write(source / "b" / "three", images[:5])
    _write(source / "b" / "three", images, "flow_x_{:05d}.jpg")
    (source / "b" / "three" / "info.json").write_text("{}")
    (source / "b" / "four.mp4").write_bytes(clips.encode(clips.moving_square(7, 32, 32)))
    args = ("folder", "--source", source, "--data_dir", tmp_path / "data", "--val_share", "0")
    assert prepare(*args, "--fps", "12") == 0
    opened = dataset.open_dataset("folder", tmp_path / "data", "train")
    found = {opened[index].id: opened[index] for index in range(len(opened))}
    assert [*found] == ["a/deep/two", "a/one", "b/four.mp4", "b/three"]
    one = found["a/one"]
    assert (one.frames, one.fps, one.height, one.width) == (12, 12.0, 48, 64)
    decoded = one.frames_at(np.arange(12)).astype(float)
    for number in range(12):  # each is nearest to its own image: lossy, and in order
        errors = np.abs(decoded[number] - images[:, :, :64].astype(float)).mean((1, 2, 3))
        assert errors.argmin() == number
    assert one.video == encode(images[:, :, :64], 12)
    reasons = {
        entry.source: entry.reason for entry in manifest.read(opened.directory).splits["train"].rejected
    }
    assert ("12 images do not belong to the numbered frames, for example flow_x_00001.jpg") in reasons[
        "b/three"
    ]
    assert "not a video" in reasons["b/three/info.json"]

    # The same images give the same bytes; another rate is another dataset.
    assert prepare(*args, "--fps", "12") == 0
    assert "already prepared" in capsys.readouterr().out
    assert prepare(*args) == 1
    again = frames.read(Frames(source / "a" / "one", Fraction(12)))
    assert again == one.video


def test_images_that_are_no_frames(tmp_path):
    videos = tmp_path / "videos"
    images = clips.moving_square(3, 16, 16)
    (videos / "a").mkdir(parents=True)
    for number in (1, 2, 3):
        (videos / "a" / f"clip{number}.mp4").write_bytes(clips.encode(images))
    _write(videos / "a" / "thumbs", images, "clip{}.png")
    _write(videos / "a", images, "clip{}.jpg")
    _write(videos / "a" / "covers", images[:1])
    found = folder.scan(videos, val_share=0.0)
    videos_of = [clip.id for clip in found.splits["train"] if isinstance(clip.source, Path)]
    assert videos_of == [f"a/clip{number}.mp4" for number in (1, 2, 3)]
    assert "named like the videos" in {e.source: e.reason for e in found.rejected["train"]}["a/thumbs"]
    left_out = [clip.id for clip in found.splits["train"] if not isinstance(clip.source, Path)]
    assert left_out == ["a/clip1.jpg", "a/clip2.jpg", "a/clip3.jpg", "a/covers/img_00001.png"]


def test_what_is_wrong_with_a_frame_folder_is_said(tmp_path):
    images = clips.moving_square(6, 16, 24)
    gap = _write(tmp_path / "gap", images)
    (gap / "img_00003.png").unlink()
    assert "frame 3 is missing: img_00002.png is followed by img_00004.png" in _reason(gap)
    twice = _write(tmp_path / "twice", images)
    Image.fromarray(images[0]).save(twice / "img_2.jpg")
    assert "both img_00002.png and img_2.jpg are frame 2" in _reason(twice)
    sizes = _write(tmp_path / "sizes", images)
    Image.fromarray(images[0, :8]).save(sizes / "img_00004.png")
    assert "img_00001.png has 24x16 pixels, img_00004.png 24x8" in _reason(sizes)
    for name, content in (
        ("empty", b""),
        ("cut", (sizes / "img_00002.png").read_bytes()[:200]),
        ("text", b"x" * 99),
        ("program", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 16\n"),
    ):
        bad = _write(tmp_path / name, images)
        (bad / "img_00005.png").write_bytes(content)
        assert "its frame img_00005.png cannot be read" in _reason(bad)
    deep = _write(tmp_path / "deep", images)
    Image.fromarray(images[0, :, :, 0].astype(np.uint16)).save(deep / "img_00001.png")
    assert "img_00001.png has the pixel format I;16" in _reason(deep)
    two = _write(_write(tmp_path / "two", images), images, "rgb_{}.png")
    assert "several series of frames, `img_...` and `rgb_...`" in _reason(two)
    tiny = _write(tmp_path / "tiny", images[:, :1])
    assert "24x1 pixels" in _reason(tiny)
    assert "list 7 frames, but the folder has 6" in _reason(_write(tmp_path / "few", images), 7)
    assert "cannot be read" in _reason(tmp_path / "nowhere")


def test_a_rejected_frame_folder_has_its_reason_in_the_manifest(tmp_path):
    images = clips.moving_square(4, 16, 16)
    _write(tmp_path / "v" / "a" / "good", images)
    bad = _write(tmp_path / "v" / "a" / "bad", images)
    (bad / "img_00002.png").write_bytes(b"")
    gap = _write(tmp_path / "v" / "a" / "gap", images)
    (gap / "img_00002.png").unlink()
    args = ("folder", "--source", tmp_path / "v", "--data_dir", tmp_path / "data", "--val_share", "0")
    assert prepare(*args) == 0
    split = manifest.read(tmp_path / "data" / "folder" / "1.0.0").splits["train"]
    assert [entry.source for entry in split.rejected] == ["a/bad", "a/gap"] and split.count == 1
    assert "img_00002.png cannot be read" in split.rejected[0].reason
    assert "frame 2 is missing" in split.rejected[1].reason


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_images_of_any_usual_kind(mode, tmp_path):
    for number in range(3):
        image = Image.new("RGB", (32, 32), (200, 30, 30)).convert(mode)
        image.save(tmp_path / f"{number}.{'tif' if mode == 'CMYK' else 'png'}")
    video = frames.read(Frames(tmp_path, Fraction(30_000, 1001)))
    info = decode.validate(video)
    assert (info.frames, info.height, info.width) == (3, 32, 32) and abs(info.fps - 29.97) < 0.01
    if mode in ("P", "RGBA", "CMYK"):
        assert (
            np.abs(decode.decode_frames(video, np.array([0]))[0, 16, 16] - np.array([200, 30, 30])).max() < 30
        )


def test_lists_of_frame_folders(tmp_path):
    images = clips.moving_square(8, 32, 32)
    source = tmp_path / "rawframes"
    _write(source / "x" / "one", images)
    _write(source / "x" / "two 3", images)
    _write(source / "x" / "three", images)
    (source / "x" / "take 2.mp4").write_bytes(clips.encode(images[:5]))
    (tmp_path / "labels.txt").write_text("a\nb\n")
    (tmp_path / "train.txt").write_text("x/one 8 1\nx/two 3 0\nx/take 2.mp4 0\nx/three,6,1\nx/gone 9 1\n")
    args = ("--source", source, "--data_dir", tmp_path / "data", "--labels", tmp_path / "labels.txt")
    assert prepare("folder", *args, "--train_list", tmp_path / "train.txt") == 0
    split = manifest.read(tmp_path / "data" / "folder" / "1.0.0").splits["train"]
    assert {video.id: (video.label, video.frames) for video in split.videos} == {
        "x/one": ("b", 8), "x/two 3": ("a", 8), "x/take 2.mp4": ("a", 5), "x/three": ("b", 6),
    }  # fmt: skip
    assert [(entry.source, entry.reason) for entry in split.rejected] == [("x/gone", "not on disk")]


def test_frame_folders_of_a_published_dataset_and_in_a_table(tmp_path):
    images = clips.moving_square(3, 16, 16)
    _write(tmp_path / "frames" / "78687", images)
    (tmp_path / "labels.json").write_text('{"Holding something": "0"}')
    (tmp_path / "train.json").write_text('[{"id": "78687", "template": "Holding [something]"}]')
    (clip,) = locate.scan("ssv2", tmp_path, rate=Fraction(12)).splits["train"]
    assert clip.source == Frames(tmp_path / "frames" / "78687", Fraction(12))
    assert clip.bytes == sum(path.stat().st_size for path in clip.source.folder.iterdir())

    (tmp_path / "table.csv").write_text("frames/78687,a\n")
    (clip,) = folder.scan(tmp_path / "table.csv").splits["train"]
    assert clip.source == Frames(tmp_path / "frames" / "78687", frames.USUAL_RATE)


@pytest.mark.parametrize("fps", ["0", "-1", "fast", "1/0", "1e9"])
def test_a_rate_that_is_none(fps, tmp_path, capsys):
    assert prepare("folder", "--source", "s", "--data_dir", tmp_path, "--fps", fps) == 2
    assert "is not a frame rate" in capsys.readouterr().err


@given(st.sets(st.integers(0, 10**6), min_size=2, max_size=30), st.sampled_from(["", "img_", "v1_f"]))
def test_frames_are_in_the_order_of_their_numbers(numbers, before):
    names = [f"{before}{number}.jpg" for number in numbers]
    series = find_series([*names, "cover.png", "notes.txt"])
    assert series.names == [f"{before}{number}.jpg" for number in sorted(numbers)]
    assert series.others == ["cover.png"]
    steps = np.diff(sorted(numbers))
    assert bool(series.fault) == (len(set(steps.tolist())) > 1)


def test_a_photo_with_a_second_picture_in_it_is_one_frame(tmp_path):
    """Cameras write JPEG files of several pictures (MPO), called .jpg."""
    first, second = (Image.new("RGB", (32, 32), (level,) * 3) for level in (40, 220))
    for number in (1, 2):
        first.save(tmp_path / f"DSC_{number:04d}.jpg", "MPO", save_all=True, append_images=[second])
    video = frames.read(Frames(tmp_path, Fraction(1)))
    assert decode.decode_frames(video, np.arange(2)).mean() < 60
