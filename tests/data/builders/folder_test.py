import itertools
import json
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from inti_jax.data import dataset, manifest
from inti_jax.data.builders import base, folder
from inti_jax.data.codec import decode
from inti_jax.errors import UserError
from tests.commands import prepare
from tests.data import clips

ROOT = Path(__file__).parents[3]
REAL_VIDEOS = ROOT.parent / "shared" / "videos"


def _video(number: int) -> bytes:
    return clips.encode(clips.moving_square(6 + number, 32, 32 + 2 * number))


@pytest.fixture
def source(tmp_path) -> Path:
    """Three classes with 5, 2 and 1 videos."""
    root = tmp_path / "videos"
    number = 0
    for label, count in (("juggling", 5), ("archery", 2), ("yoga", 1)):
        (root / label).mkdir(parents=True)
        for index in range(count):
            (root / label / f"{index}.mp4").write_bytes(_video(number))
            number += 1
    (root / "archery" / ".DS_Store").write_bytes(b"x")
    return root


def _read(name, data_dir, split):
    opened = dataset.open_dataset(name, data_dir, split)
    return opened, [opened[i] for i in range(len(opened))]


def test_a_directory_of_classes(source, tmp_path, capsys):
    data_dir = tmp_path / "data"
    assert prepare("folder", "--source", source, "--data_dir", data_dir, "--name", "sports") == 0
    output = capsys.readouterr()
    assert "sports 1.0.0" in output.out and "train: 6 videos, 0 rejected" in output.out
    assert "6 of 6" in output.err
    seen = {}
    for split in ("train", "val"):
        opened, examples = _read("sports", data_dir, split)
        assert opened.labels == ("archery", "juggling", "yoga")
        assert opened.ids == tuple(example.id for example in examples)
        for example in examples:
            assert example.video == (source / example.id).read_bytes()
            assert opened.labels[example.label] == example.id.split("/")[0]
            info = decode.validate(example.video)
            assert (example.frames, example.height, example.width) == (info.frames, info.height, info.width)
            seen[example.id] = split
    assert len(seen) == 8
    val = sorted(video_id.split("/")[0] for video_id, split in seen.items() if split == "val")
    assert val == ["archery", "juggling"]  # a fifth of each class, at least one, but not the only one

    assert [path.name for path in data_dir.iterdir()] == ["sports"]


def _add_file(source):
    shutil.copy(source / "yoga" / "0.mp4", source / "yoga" / "1.mp4")


def _replace_file(source):
    (source / "yoga" / "0.mp4").write_bytes(_video(9))


def _rename_label(source):
    (source / "yoga").rename(source / "dance")


def test_a_dataset_is_reused_for_the_same_source_wherever_it_is(source, tmp_path, capsys):
    args = ("folder", "--data_dir", tmp_path / "data", "--source")
    assert prepare(*args, source) == 0
    assert "already prepared" not in capsys.readouterr().out
    assert prepare(*args, source.rename(tmp_path / "moved")) == 0
    assert "already prepared" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (_add_file, ()),
        (_replace_file, ()),
        (_rename_label, ()),
        (None, ("--val_share", "0.6")),
        (None, ("--labels", "labels.txt")),
    ],
)
def test_a_dataset_of_another_source_is_not_reused(change, options, source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("labels.txt").write_text("yoga\njuggling\narchery\n")
    args = ("folder", "--source", source, "--data_dir", "data")
    assert prepare(*args) == 0
    before = manifest.read(Path("data/folder/1.0.0"))
    if change:
        change(source)
    capsys.readouterr()
    assert prepare(*args, *options) == 1
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert str(source) in line and "data/folder/1.0.0" in line and "--name" in line and not output.out
    assert manifest.read(Path("data/folder/1.0.0")) == before
    assert prepare(*args, *options, "--name", "other") == 0


def test_a_missing_source_is_an_error_also_where_there_is_a_dataset(source, tmp_path, capsys):
    args = ("folder", "--data_dir", tmp_path / "data", "--source")
    assert prepare(*args, source) == 0
    assert prepare(*args, tmp_path / "absent") == 1
    assert "absent does not exist" in capsys.readouterr().err


def test_preparing_leaves_nothing_in_the_temporary_directory(source, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert prepare("folder", "--source", source, "--data_dir", tmp_path / "data") == 0
    dataset.open_dataset("folder", tmp_path / "data", "val")
    assert not any((tmp_path / "temporary").iterdir())


def test_given_splits_and_the_same_again_elsewhere(source, tmp_path):
    root = tmp_path / "split"
    shutil.copytree(source, root / "train")
    shutil.copytree(source / "yoga", root / "val" / "yoga")
    for place in ("one", "two"):
        assert prepare("folder", "--source", root, "--data_dir", tmp_path / place) == 0
    one, two = (dataset.open_dataset("folder", tmp_path / place, "val") for place in ("one", "two"))
    assert one.ids == ("val/yoga/0.mp4",)
    assert one.manifest["splits"]["train"]["count"] == 8
    assert one.manifest == two.manifest


def test_a_csv_file_with_several_labels_a_video(source, tmp_path, capsys):
    table = tmp_path / "table.csv"
    files = sorted(path for path in source.rglob("*.mp4"))
    own = [("run",), ("run", "turn left"), ("jump", "turn left"), ("turn right",), ("turn right", "run")]
    own += [("jump",), ("run", "jump", "turn left"), ("jump", "turn right")]
    rows = [f"{path},{'; '.join(labels)}" for path, labels in zip(files, own, strict=True)]
    table.write_text("\n".join(["path,labels", *rows]) + "\n")
    args = ("folder", "--source", table, "--data_dir", tmp_path / "data", "--name", "acts")
    assert prepare(*args) == 0
    assert "4 labels, one or more a video" in capsys.readouterr().out
    wanted = {str(path).removeprefix("/"): set(labels) for path, labels in zip(files, own, strict=True)}
    seen = {}
    for split in ("train", "val"):
        opened, examples = _read("acts", tmp_path / "data", split)
        assert opened.multi_label and opened.labels == ("jump", "run", "turn left", "turn right")
        for example, row in zip(examples, opened.classes, strict=True):
            labels = {opened.labels[index] for index in example.label}
            assert labels == {opened.labels[index] for index in np.flatnonzero(row)}
            assert labels == wanted[example.id.lstrip("/")]
            seen[example.id] = split
    assert len(seen) == 8 and list(seen.values()).count("val") >= 2

    assert prepare(*args) == 0 and "already prepared" in capsys.readouterr().out
    directory = dataset.find_dataset("acts", tmp_path / "data")
    assert prepare("--check", directory) == 0 and prepare("--describe", directory, "--json") == 0
    described = json.loads(capsys.readouterr().out.partition("\n")[2])
    counts = {entry["label"]: entry["train"] + entry["val"] for entry in described["datasets"][0]["labels"]}
    assert counts == {"jump": 4, "run": 4, "turn left": 3, "turn right": 3}

    # With the column `label`, a semicolon is a part of the label.
    table.write_text(table.read_text().replace("path,labels", "path,label"))
    assert prepare(*args[:-1], "whole") == 0
    opened, _ = _read("whole", tmp_path / "data", "train")
    assert not opened.multi_label and "run; turn left" in opened.labels
    path = dataset.find_dataset("whole", tmp_path / "data") / manifest.FILE_NAME
    assert "multi_label" not in json.loads(path.read_text())


def test_a_csv_file(source, tmp_path):
    table = tmp_path / "table.csv"
    absolute = source / "yoga" / "0.mp4"
    table.write_text(
        f"label,path,split\nb,videos/archery/0.mp4,val\n\na,videos/archery/1.mp4,train\nb,{absolute},train\n"
    )
    assert prepare("folder", "--source", table, "--data_dir", tmp_path / "data") == 0
    opened, examples = _read("folder", tmp_path / "data", "train")
    assert [opened.labels[example.label] for example in examples] == ["a", "b"]
    assert opened.ids == ("videos/archery/1.mp4", absolute.as_posix())

    labels = tmp_path / "labels.txt"
    labels.write_text("b\na\nc\n")
    plain = tmp_path / "plain.csv"
    plain.write_text("videos/archery/0.mp4,b\nvideos/archery/1.mp4,a\n")
    found, splits, *_ = folder.scan(plain, labels_file=labels)
    assert found == ("b", "a", "c")
    assert [clip.label for clip in splits["train"]] == ["b", "a"] and splits["val"] == []


@pytest.mark.usefixtures("source")
def test_a_table_as_pandas_writes_it_and_splits_by_their_usual_names(tmp_path, capsys):
    """`DataFrame.to_csv` has a column of row numbers without a name; read and written again it gets one."""
    table = tmp_path / "table.csv"
    rows = ["0,videos/archery/0.mp4,a,Train", "1,videos/archery/1.mp4,a,validation"]
    headers = (",path,label,split", "Unnamed: 0,Path,Label,Split")
    for header, mark in itertools.product(headers, ",;\t"):
        table.write_text("\n".join([header, *rows]).replace(",", mark))
        splits = folder.scan(table).splits
        assert {name: [clip.id for clip in clips] for name, clips in splits.items()} == {
            "train": ["videos/archery/0.mp4"], "val": ["videos/archery/1.mp4"],
        }  # fmt: skip
    table.write_text("\n".join([",path,label,split", *rows, "2,videos/yoga/0.mp4,a,test"]))
    assert prepare("folder", "--source", table, "--data_dir", tmp_path / "data") == 0
    assert "note: 1 row of `test` is not used" in capsys.readouterr().err
    (left_out,) = manifest.read(tmp_path / "data" / "folder" / "1.0.0").splits["val"].rejected
    assert left_out == manifest.Rejected("videos/yoga/0.mp4", "it belongs to `test`, which is not used")


BAD_FILES = {
    "empty.mp4": b"",
    "half.avi": clips.encode(clips.moving_square(40), codec="mpeg4", container="avi")[:8_000],
    "notes.txt": b"read me " * 100,
    "sound.mp4": clips.sound_only(),
}


def test_bad_files_are_listed_and_left_out(source, tmp_path, capsys):
    for name, content in BAD_FILES.items():
        (source / "juggling" / name).write_bytes(content)
    args = ("folder", "--source", source, "--data_dir", tmp_path / "data", "--val_share", "0")
    assert prepare(*args) == 0
    assert "8 videos, 4 rejected" in capsys.readouterr().out
    split = manifest.read(tmp_path / "data" / "folder" / "1.0.0").splits["train"]
    assert [rejected.source for rejected in split.rejected] == [f"juggling/{name}" for name in BAD_FILES]
    assert all(rejected.reason and "\n" not in rejected.reason for rejected in split.rejected)
    assert not any("juggling/e" in listed.id for listed in split.videos) and split.count == 8


@pytest.mark.parametrize("bad", [(0,), (3,), (4,), (0, 1, 3, 4)])
def test_a_split_is_complete_wherever_its_bad_files_are(bad, tmp_path):
    rows = ["path,label,split"]
    for index in range(5):
        (tmp_path / f"{index}.mp4").write_bytes(b"" if index in bad else _video(index))
        rows.append(f"{index}.mp4,a,train")
    table = tmp_path / "videos.csv"
    table.write_text("\n".join(rows))
    assert prepare("folder", "--source", table, "--data_dir", tmp_path / "data") == 0
    opened, _ = _read("folder", tmp_path / "data", "train")
    assert list(opened.ids) == [f"{index}.mp4" for index in range(5) if index not in bad]
    rejected = manifest.read(opened.directory).splits["train"].rejected
    assert [entry.source for entry in rejected] == [f"{index}.mp4" for index in bad]


def test_shards_keep_the_order_even_where_one_is_empty(source, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "_SHARD_BYTES", 1)  # a shard for each file
    (source / "archery" / "1.mp4").write_bytes(b"damaged")
    args = ("folder", "--source", source, "--data_dir", tmp_path / "data", "--val_share", "0")
    assert prepare(*args) == 0
    assert len(list((tmp_path / "data").rglob("*array_record*"))) == 8
    opened, examples = _read("folder", tmp_path / "data", "train")
    assert opened.ids == tuple(example.id for example in examples)
    assert len(examples) == 7


def test_nothing_half_made_can_be_opened(source, tmp_path, monkeypatch):
    checked = []

    def interrupt(content, most_doubtful):
        checked.append(content)
        if len(checked) > 4:
            raise KeyboardInterrupt
        return decode.VideoInfo(1, 1.0, 1, 1)

    data_dir = tmp_path / "data"
    with monkeypatch.context() as patched:
        patched.setattr(decode, "validate", interrupt)
        assert prepare("folder", "--source", source, "--data_dir", data_dir) == 130
    assert dataset.find_dataset("folder", data_dir) is None
    assert prepare("folder", "--source", source, "--data_dir", data_dir) == 0
    assert [path.name for path in (data_dir / "folder").iterdir()] == ["1.0.0"]


def test_a_place_that_cannot_be_written_is_said(source, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "data" / "folder" / "1.0.0").mkdir(parents=True)
    for place, reason in (("file", "cannot be written"), ("data", "not a finished dataset")):
        args = ("folder", "--source", source, "--data_dir", tmp_path / place)
        assert prepare(*args) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line


def test_a_dataset_reads_the_same_in_threads_and_when_unpickled(source, tmp_path):
    args = ("folder", "--source", source, "--data_dir", tmp_path / "data", "--val_share", "0")
    assert prepare(*args) == 0
    opened, examples = _read("folder", tmp_path / "data", "train")
    copy = pickle.loads(pickle.dumps(opened))
    assert (copy.ids, copy.labels, copy.manifest) == (opened.ids, opened.labels, opened.manifest)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(copy.__getitem__, [*range(8)] * 4)) == examples * 4


def test_short_videos_are_counted(source, tmp_path):
    args = ("folder", "--source", source, "--data_dir", tmp_path / "data", "--val_share", "0")
    assert prepare(*args) == 0
    opened = dataset.open_dataset("folder", tmp_path / "data", "train")
    assert [opened.short(frames) for frames in (6, 7, 9, 99)] == [0, 1, 3, 8]  # they have 6 to 13 frames


def test_what_is_wrong_with_a_dataset_is_said(source, tmp_path):
    data_dir = tmp_path / "data"
    with pytest.raises(
        UserError, match=r"not in .*prepare folder --source \.\.\. --name sports --data_dir .*no dataset"
    ):
        dataset.open_dataset("sports", data_dir, "train")
    with pytest.raises(UserError, match=r"inti_jax\.prepare motion_digits --data_dir"):
        dataset.open_dataset("motion_digits", data_dir, "train")
    assert prepare("folder", "--source", source, "--data_dir", data_dir) == 0
    with pytest.raises(UserError, match="found there: folder"):
        dataset.open_dataset("sports", data_dir, "train")
    with pytest.raises(UserError, match="no split `test`: it has train, val"):
        dataset.open_dataset("folder", data_dir, "test")
    args = ("folder", "--source", source, "--data_dir", data_dir, "--name", "whole", "--val_share", "0")
    assert prepare(*args) == 0
    with pytest.raises(
        UserError, match=r"no split `val`: it has train; delete .*whole.* --val_share above 0"
    ):
        dataset.open_dataset("whole", data_dir, "val")

    directory = data_dir / "folder" / "1.0.0"
    listing = directory / "manifest.json"
    original = listing.read_text()
    changed = json.loads(original)
    changed["splits"]["train"]["videos"][0]["label"] = "yoga"
    for text, reason in (
        (json.dumps(changed), "was changed"),
        ("{", "not a manifest"),
        ("[]", "not a manifest"),
    ):
        listing.write_text(text)
        with pytest.raises(UserError, match=reason):
            dataset.open_dataset("folder", data_dir, "train")
    listing.write_text(original)
    for shard in directory.glob("*array_record*"):
        shard.unlink()
    with pytest.raises(UserError, match="prepare it again"):
        dataset.open_dataset("folder", data_dir, "train")


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("path,labels\nvideos/yoga/0.mp4,yoga;\n", "table.csv row 2: a label is empty"),
        ("path,labels\nvideos/yoga/0.mp4,yoga; yoga\n", "row 2: the label `yoga` is given twice"),
        (
            "path,labels,label\nvideos/yoga/0.mp4,yoga,yoga\n",
            "row 1: it has both `label` and `labels` as columns",
        ),
        ("videos/yoga/0.mp4,yoga\nvideos/yoga/9.mp4,yoga\n", r"table.csv row 2: there is no file .*9.mp4"),
        (
            "videos/yoga/0.mp4,yoga\n./videos/yoga/0.mp4,yoga\n",
            "row 2: videos/yoga/0.mp4 is already",
        ),
        ("videos/yoga/0.mp4,yogi\n", "row 1: the label `yogi` is not in .*did you mean `yoga`"),
        ("videos/yoga/0.mp4\n", "row 1: 1 columns instead of 2"),
        ("videos/yoga/0.mp4,\n", "row 1: the label is empty"),
        ("path,label,split\nvideos/yoga/0.mp4,yoga,vall\n", "row 2: unknown split `vall`"),
        ("path,label,weight\nvideos/yoga/0.mp4,yoga,1\n", "row 1: unknown column `weight`"),
        ("path,label\n", "no rows"),
        ("videos/yoga/0.mp4 1\n", "row 1: 1 columns instead of 2.*line of a list.*--train_list.*--labels"),
        (
            "videos/yoga/0.mp4,1\n",
            "row 1: the label `1` is not in the labels file. Pass .*--train_list",
        ),
        ("0,videos/yoga/0.mp4,yoga\n", "row 1: 3 columns instead of 2.*pandas' index"),
        (
            "file,class\nvideos/yoga/0.mp4,yoga\n",
            "row 1: there is no file .*file; a header.*`path` and `label`",
        ),
        ("path,label,path\na,b,c\n", "row 1: the column `path` is given twice"),
        ("videos/yoga,yoga\n", "row 1: .*yoga is a folder without numbered images"),
        ("", "empty"),
    ],
)
@pytest.mark.usefixtures("source")
def test_what_is_wrong_with_a_csv_file_is_said_before_anything_is_written(table, reason, tmp_path, capsys):
    (tmp_path / "table.csv").write_text(table)
    labels = tmp_path / "labels.txt"
    labels.write_text("archery\nyoga\n")
    args = ("--source", tmp_path / "table.csv", "--data_dir", tmp_path / "data", "--labels", labels)
    assert prepare("folder", *args) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(reason, line)
    assert not (tmp_path / "data").exists()


def test_what_is_wrong_with_a_directory_is_said(source, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        folder.scan(tmp_path / "nowhere")
    with pytest.raises(UserError, match="contains no folders"):
        folder.scan(source / "yoga")
    (tmp_path / "half" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="two folders, `train` and `val`"):
        folder.scan(tmp_path / "half")


def test_a_split_without_a_valid_video(tmp_path, capsys):
    for label in ("a", "b"):
        (tmp_path / "videos" / label).mkdir(parents=True)
        (tmp_path / "videos" / label / "x.mp4").write_bytes(b"damaged")
    args = ("--source", tmp_path / "videos", "--data_dir", tmp_path / "data")
    assert prepare("folder", *args) == 1
    assert "no video of `train` can be decoded; the first, a/x.mp4" in capsys.readouterr().err
    assert dataset.find_dataset("folder", tmp_path / "data") is None


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["folders", "--data_dir", "d"], "did you mean `folder`?"),
        (["folder", "--data_dir", "d"], "--source"),
        (["folder", "--source", "s"], "--data_dir"),
        (["folder", "--source", "s", "--data_dir", "d", "--name", "My-Videos"], "My-Videos"),
        (["folder", "--source", "s", "--data_dir", "d", "--name", "motion_digits"], "taken"),
        (["folder", "--source", "s", "--data_dir", "d", "--val_share", "1.5"], "1.5"),
        (["motion_digits", "--source", "s", "--data_dir", "d"], "--source does not apply to motion_digits"),
    ],
)
def test_wrong_usage(args, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert prepare(*args) == 2
    assert reason in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_tensorflow_is_never_imported(source, tmp_path):
    script = """
import sys
from inti_jax.prepare import __main__ as prepare
from inti_jax.data import dataset, pipeline

prepare.main()
dataset.open_dataset("folder", sys.argv[-1], "train")[0]
assert "tensorflow" not in sys.modules
"""
    args = ["folder", "--source", source, "--data_dir", tmp_path / "data"]
    subprocess.run([sys.executable, "-c", script, *map(str, args)], check=True, cwd=ROOT)


@pytest.mark.skipif(not REAL_VIDEOS.is_dir(), reason=f"the real videos are not in {REAL_VIDEOS}")
def test_real_videos(tmp_path):
    for path in [*REAL_VIDEOS.glob("*.mp4"), *REAL_VIDEOS.glob("*.avi")]:
        (tmp_path / "videos" / path.suffix[1:]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "videos" / path.suffix[1:])
    args = ("--source", tmp_path / "videos", "--data_dir", tmp_path / "data", "--val_share", "0")
    assert prepare("folder", *args) == 0
    opened, examples = _read("folder", tmp_path / "data", "train")
    assert opened.labels == ("avi", "mp4")
    sizes = {Path(example.id).stem: (example.frames, example.height, example.width) for example in examples}
    assert sizes["mmaction2_demo"] == (280, 256, 340)
    assert sizes["mmaction2_test"] in {(300, 256, 340), (164, 240, 320)}
    assert sizes["videoprism_drumming"] == (100, 512, 512)
    for example in examples:
        wanted = np.array([example.frames - 1, 3, 3, example.frames // 2])
        frames = decode.decode_frames(example.video, wanted, example.frames)
        np.testing.assert_array_equal(frames, clips.decode_all(example.video)[wanted])
