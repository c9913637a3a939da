"""Prepare directories with links, unreadable folders, other files, splits and odd names."""

import codecs
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from inti_jax.data import check, dataset, manifest
from inti_jax.data.builders import base, folder, locate
from inti_jax.data.builders.annotations import Absent
from inti_jax.errors import UserError
from inti_jax.host.names import printable
from tests.commands import prepare
from tests.data import clips

VIDEOS = [clips.encode(clips.moving_square(4 + number, 32, 32)) for number in range(8)]


def _videos(root: Path, *paths: str | bytes) -> None:
    """Write different videos to these paths below `root`."""
    for number, path in enumerate(paths):
        file = root / os.fsdecode(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(VIDEOS[number])


def _prepared(source: Path, *options: object) -> manifest.Manifest:
    data_dir = source.parent / "data"
    assert prepare("folder", "--source", source, "--data_dir", data_dir, *options) == 0
    return manifest.read(data_dir / "folder" / "1.0.0")


def _ids(contents: manifest.Manifest, split: str = "train") -> list[str]:
    return [video.id for video in contents.splits[split].videos]


def _reasons(contents: manifest.Manifest, split: str = "train") -> dict[str, str]:
    return {entry.source: entry.reason for entry in contents.splits[split].rejected}


@contextlib.contextmanager
def _unreadable(*folders: Path) -> Iterator[None]:
    """Take away all permissions, also root's, who has another user's meanwhile."""
    user = os.geteuid()
    for path in folders:
        path.chmod(0)
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        for path in folders:
            path.chmod(0o755)


def test_links_are_followed_and_what_cannot_be_read_is_listed(tmp_path):
    source = tmp_path / "videos"
    _videos(source, "a/one.mp4", "a/deep/two.mp4", "b/three.mp4")
    _videos(tmp_path, "disk/x/four.mp4")
    (source / "a" / "elsewhere").symlink_to(tmp_path / "disk")
    (source / "a" / "again").symlink_to(source / "a" / "deep")
    (source / "b" / "up").symlink_to(source)
    (source / "b" / "gone.mp4").symlink_to(tmp_path / "gone.mp4")
    (source / "b" / "itself.mp4").symlink_to("itself.mp4")
    (source / "lost").symlink_to(tmp_path / "unmounted")
    (source / "beside.mp4").write_bytes(VIDEOS[0])
    os.mkfifo(source / "b" / "pipe.mp4")
    contents = _prepared(source, "--val_share", "0")
    assert contents.labels == ("a", "b")
    assert _ids(contents) == ["a/deep/two.mp4", "a/elsewhere/x/four.mp4", "a/one.mp4", "b/three.mp4"]
    reasons = _reasons(contents)
    assert list(reasons) == [
        "lost", "beside.mp4", "a/again", "b/gone.mp4", "b/itself.mp4", "b/pipe.mp4", "b/up",
    ]  # fmt: skip
    assert "a link to" in reasons["lost"] and "unmounted" in reasons["lost"]
    assert "gone.mp4, which cannot be reached: No such file" in reasons["b/gone.mp4"]
    assert "symbolic links" in reasons["b/itself.mp4"] and "a pipe" in reasons["b/pipe.mp4"]
    assert all("contains it or is already read" in reasons[name] for name in ("a/again", "b/up"))
    assert "in no class folder" in reasons["beside.mp4"]


def test_a_class_that_is_a_link_is_one_unless_it_leads_up(tmp_path):
    source = tmp_path / "videos"
    _videos(source, "a/one.mp4")
    _videos(tmp_path, "disk/b/two.mp4")
    (source / "b").symlink_to(tmp_path / "disk" / "b")
    (source / "all").symlink_to(source)
    (tmp_path / "disk" / "b" / "back").symlink_to(source)
    contents = _prepared(source, "--val_share", "0")
    assert _ids(contents) == ["a/one.mp4", "b/two.mp4"]
    assert [*_reasons(contents)] == ["all", "b/back"] and contents.labels == ("a", "b")


def test_folders_that_cannot_be_read_are_listed_by_both_readers(tmp_path, monkeypatch):
    codecs.lookup("utf-8-sig")  # another user may not import it
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    _videos(Path("videos"), "a/one.mp4", "a/closed/two.mp4", "b/three.mp4", "c/four.mp4")
    with _unreadable(Path("videos/a/closed"), Path("videos/c")):
        found = folder.scan(Path("videos"))
    assert found.labels == ("a", "b", "c")  # and so the numbers of the classes stay what they are
    reason = "the folder cannot be read: Permission denied"
    assert [*found.rejected["train"]] == [
        manifest.Rejected("a/closed", reason),
        manifest.Rejected("c", reason),
    ]

    header = "label,youtube_id,time_start,time_end\n"
    Path("videos/train.csv").write_text(header + "a,one,0,1\na,two,0,1\n")
    (Path("videos") / "two.mp4").symlink_to(tmp_path / "gone.mp4")
    Path("train.txt").write_text("a/one.mp4 0\na/closed/two.mp4 0\nc/four.mp4 0\n")
    Path("labels.txt").write_text("a\n")
    with _unreadable(Path("videos/a/closed"), Path("videos/c")):
        located = locate.scan("kinetics400", Path("videos"))
        lists = {"train": Path("train.txt")}
        listed = locate.scan("folder", Path("videos"), list_files=lists, labels_file=Path("labels.txt"))
    one, two, four = listed.splits["train"]
    assert isinstance(one.source, Path)
    assert two.source.reason == four.source.reason == f"not on disk: {reason}"
    one, two = located.splits["train"]
    assert one.source == Path("videos/a/one.mp4")
    assert "not on disk: a link to" in two.source.reason
    assert [entry.source for entry in located.rejected["train"]] == ["a/closed", "c"]
    assert any("2 folders below videos cannot be read" in note for note in located.notes)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("Train", "Val"),
        ("TRAIN", "validation"),
        ("training", "Valid"),
        ("train_256", "val_256"),
        ("videos_train", "videos-val"),
        ("train", "Dev"),
        ("Train", "Test"),
        ("trainval", "Test"),
    ],
)
def test_split_folders_by_their_usual_names(train, val, tmp_path, capsys):
    source = tmp_path / "videos"
    _videos(source, f"{train}/a/1.mp4", f"{train}/b/2.mp4", f"{val}/a/3.mp4", f"{val}/b/4.mp4")
    contents = _prepared(source)
    assert contents.labels == ("a", "b")
    assert _ids(contents) == [f"{train}/a/1.mp4", f"{train}/b/2.mp4"]
    assert _ids(contents, "val") == [f"{val}/a/3.mp4", f"{val}/b/4.mp4"]
    assert ("`Test` is used as `val`" in capsys.readouterr().err) == (val == "Test")


def test_a_test_folder_beside_val_is_left_out_with_a_note(tmp_path, capsys):
    source = tmp_path / "videos"
    _videos(source, "train/a/1.mp4", "Val/a/2.mp4", "test/a/3.mp4")
    contents = _prepared(source)
    assert contents.labels == ("a",) and _ids(contents, "val") == ["Val/a/2.mp4"]
    assert "a dataset of its own" in _reasons(contents, "val")["test"]
    assert "note: `test` is not used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        (["catch_the_train", "miss_the_train"], ("catch_the_train", "miss_the_train")),
        (["train", "bus", "test"], ("bus", "test", "train")),  # vehicles, and a class
        (["Val", "Train", "bus"], "should have no other folder: `bus`"),
        (["train"], "needs two folders"),
        (["Train", "val", "validation"], "two of them name the split `val`"),
    ],
)
def test_which_folders_are_classes(folders, labels, tmp_path):
    _videos(tmp_path, *(f"{name}/x/1.mp4" for name in folders))
    if isinstance(labels, str):
        with pytest.raises(UserError, match=labels):
            folder.scan(tmp_path)
    else:
        scanned = folder.scan(tmp_path)
        assert scanned.labels == labels
        note = "`test`, `train` count as labels: `bus` beside them names no split"
        assert scanned.notes == ((note,) if "bus" in labels else ())


def test_splits_inside_of_classes_are_noted(tmp_path):
    _videos(tmp_path, "a/train/1.mp4", "a/val/2.mp4", "b/Train/3.mp4")
    (note,) = folder.scan(tmp_path).notes
    assert "folders `Train`, `train`, `val`, which are not used as splits" in note


@pytest.mark.parametrize(
    "labels", ["\n".join(f"{n} label {n}" for n in range(30)), "id,name\n0,a\n1,b\n", "1: a\n2: b\n"]
)
def test_labels_with_their_numbers_are_not_taken_for_labels(labels, tmp_path):
    _videos(tmp_path, "videos/1.mp4", "videos/2.mp4")
    (tmp_path / "train.txt").write_text("1.mp4 0\n2.mp4 1\n")
    (tmp_path / "labels.txt").write_text(labels)
    with pytest.raises(UserError, match=r"labels\.txt has numbers before its labels, as in `[01]"):
        locate.scan(
            "folder",
            tmp_path / "videos",
            list_files={"train": tmp_path / "train.txt"},
            labels_file=tmp_path / "labels.txt",
        )


def test_files_that_are_no_videos_have_no_part_in_the_split(tmp_path):
    """Two videos in each class, so one is in `val`, however many files are beside them."""
    source = tmp_path / "videos"
    for label in "abcdefgh":
        _videos(source, f"{label}/1.mp4", f"{label}/2.mp4")
        for name in ("1.json", "1.vtt", "2.jpg", "notes.txt", "Thumbs.db", "sound"):
            content = clips.sound_only() if name == "sound" else b'{"label": 1}'
            (source / label / name).write_bytes(content)
        (source / label / "3").write_bytes(VIDEOS[3])  # one without a suffix
    contents = _prepared(source)
    for label in "abcdefgh":
        assert len([video for video in _ids(contents, "val") if video.startswith(label)]) == 1
        assert len([video for video in _ids(contents) if video.startswith(label)]) == 2
    assert "val" in contents.splits and not contents.splits["val"].rejected
    reasons = _reasons(contents)
    assert len(reasons) == 6 * 8 and all(reasons.values())
    assert "no video stream" in reasons["a/sound"] and "still image" in reasons["a/2.jpg"]


def test_a_source_looks_as_it_did_to_earlier_versions(tmp_path):
    """Split, order and fingerprint, as version 0.6 had them: what was prepared with it is not refused."""
    for number in range(8):
        for place, suffix in (("a", "mp4"), ("b b/deep-er", "avi"), ("b b/deep", "avi")):
            for source in ("videos", "splits/train", "splits/val"):
                path = tmp_path / source / place / f"{number}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(bytes(10 + number))
    labels, splits, *_ = folder.scan(tmp_path / "videos")
    assert [clip.id for clip in splits["val"]] == [
        "a/2.mp4", "a/7.mp4", "b b/deep/1.avi", "b b/deep/4.avi", "b b/deep-er/2.avi",
    ]  # fmt: skip
    assert base.fingerprint(labels, splits).startswith("7965177be3e52675")
    assert manifest.digest([clip.id for clip in splits["train"]]).startswith("d422a87766f3c297")
    # Where the source says the splits, also with files that are no videos.
    (tmp_path / "splits" / "val" / "a" / "x.json").write_text("{}")
    labels, splits, *_ = folder.scan(tmp_path / "splits")
    assert base.fingerprint(labels, splits).startswith("15374138fb94d213")


def test_a_class_without_videos_is_noted(tmp_path, capsys):
    source = tmp_path / "videos"
    _videos(source, "train/b/1.mp4", "train/c/2.mp4", "val/b/3.mp4", "val/d/4.mp4")
    _videos(source, "val/e/5.mp4", "train/f/6.mp4")
    (source / "train" / "a").mkdir()
    (source / "train" / "a" / "x.json").write_text("{}")
    (source / "train" / "g").mkdir()
    (source / "val" / "c").mkdir()
    contents = _prepared(source)
    assert contents.labels == ("a", "b", "c", "d", "e", "f", "g")
    notes = capsys.readouterr().err
    assert "note: 2 labels have no video: `a`, `g`" in notes
    assert "note: 2 labels have videos in `val` and none in `train`: `d`, `e`" in notes
    assert "note: 2 labels have videos in `train` and none in `val`: `c`, `f`" in notes


def test_the_same_bytes_in_both_splits_or_under_two_labels_are_noted(tmp_path, capsys):
    source = tmp_path / "videos"
    _videos(source, "train/a/1.mp4", "train/b/2.mp4", "val/a/3.mp4", "val/b/4.mp4")
    (source / "val" / "a" / "copy.mp4").write_bytes(VIDEOS[0])
    (source / "val" / "b" / "other.mp4").write_bytes(VIDEOS[2])
    _prepared(source)
    notes = capsys.readouterr().err
    assert "note: 2 videos of `val` are in `train` too" not in notes
    assert "note: 1 video of `val` is in `train` too, byte for byte: val/a/copy.mp4 is train/a/1.mp4" in notes
    assert "note: 1 video is listed under two labels: val/a/3.mp4 (a) is val/b/other.mp4 (b)" in notes


ODD = [b"caf\xe9", b"tab\there", "naïve".encode(), b"back\\slash", b"\\xe9", b"caf\\xe9"]


def test_names_that_are_not_utf8_have_a_printable_form(tmp_path):
    source = tmp_path / "videos"
    _videos(source, *(name + b"/" + name + b".mp4" for name in ODD))
    contents = _prepared(source, "--val_share", "0")
    expected = [r"caf\xe9", r"tab\x09here", "naïve", "back\\slash", r"\\xe9", r"caf\\xe9"]
    assert sorted(contents.labels) == sorted(expected)
    assert sorted(_ids(contents)) == sorted(f"{name}/{name}.mp4" for name in expected)
    opened = dataset.open_dataset("folder", tmp_path / "data", "train")
    for index in range(len(opened)):
        example = opened[index]
        assert example.id == f"{opened.labels[example.label]}/{opened.labels[example.label]}.mp4"
    assert not list(check.differences(tmp_path / "data" / "folder" / "1.0.0"))
    json.dumps(contents.summary()).encode()
    assert prepare("folder", "--source", source, "--data_dir", tmp_path / "data", "--val_share", "0") == 0


def test_labels_with_spaces_at_their_ends(tmp_path):
    """TFDS keeps labels without them, the manifest with them."""
    source = tmp_path / "videos"
    _videos(source, "a /1.mp4", " b/2.mp4")
    assert _prepared(source, "--val_share", "0").labels == (" b", "a ")
    assert not list(check.differences(tmp_path / "data" / "folder" / "1.0.0"))
    _videos(source, "a/1.mp4")
    with pytest.raises(UserError, match="'a' and 'a ' differ only in spaces"):
        folder.scan(source)


def test_a_data_dir_that_arrayrecord_cannot_open(tmp_path, capsys):
    _videos(tmp_path / "videos", "a/1.mp4")
    data_dir = os.fsdecode(b"caf\xe9")
    assert prepare("folder", "--source", tmp_path / "videos", f"--data_dir={tmp_path}/{data_dir}") == 2
    assert r"caf\xe9 is not UTF-8" in capsys.readouterr().err


def test_different_names_have_different_printable_forms():
    names = [
        b"\xe9",
        rb"\xe9",
        rb"\\xe9",
        rb"\\\xe9",
        b"\\\xe9",
        b"\\\\\xe9",
        b"a\nb",
        rb"a\x0ab",
        b"\xc3\xa9",
    ]
    forms = [printable(os.fsdecode(name)) for name in names]
    assert len(set(forms)) == len(names) and all(form.isprintable() for form in forms)
    assert printable("a b\\c\u00a0d") == "a b\\c\u00a0d"  # as it always was


def test_a_source_of_which_nothing_is_a_video_says_why(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").symlink_to("gone.mp4")
    with pytest.raises(UserError, match=r"no video of `train`: the first of 1 .* a/x\.mp4: a link to gone"):
        folder.scan(tmp_path)
    (tmp_path / "a" / "1.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"the first of 2 .* a/1\.jpg: it is a still image: put the frames"):
        folder.scan(tmp_path)


def test_a_table_of_files_that_are_no_videos(tmp_path):
    _videos(tmp_path, "1.mp4", "2.mp4")
    (tmp_path / "1.json").write_text("{}")
    table = tmp_path / "videos.csv"
    table.write_text("1.mp4,a\n2.mp4,a\n1.json,a\n")
    splits = folder.scan(table).splits
    assert len(splits["val"]) == 1 and [type(clip.source) for clip in splits["train"]].count(Absent) == 1


def test_labels_that_begin_with_numbers_are_labels(tmp_path):
    _videos(tmp_path, "videos/1 finger/1.mp4", "videos/2 fingers/2.mp4")
    (tmp_path / "labels.txt").write_text("1 finger\n2 fingers\n")
    found = folder.scan(tmp_path / "videos", labels_file=tmp_path / "labels.txt")
    assert found.labels == ("1 finger", "2 fingers")
