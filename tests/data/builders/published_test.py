"""The published datasets, each as a miniature of the tree that its users have, with its own encoding."""

import csv
import functools
import io
import itertools
import json
import logging
import re
from pathlib import Path

import av
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inti_jax import config
from inti_jax.data import dataset, manifest
from inti_jax.data.augmentation import opposites
from inti_jax.data.builders import annotations, lists, locate, registry, tree
from inti_jax.errors import UserError
from inti_jax.training import announce
from tests.commands import prepare
from tests.data import clips

LABELS = Path(__file__).parents[4] / "shared" / "labels"
HEADER = "label,youtube_id,time_start,time_end,split"


@functools.cache
def _encoded(suffix: str, number: int) -> bytes:
    frames = clips.moving_square(3 + number % 3, 32, 32 + 2 * number)
    if suffix == ".avi":
        video = clips.encode(frames, codec="mpeg4", container="avi")
        return video.replace(b"FMP4", b"XVID")
    if suffix == ".webm":
        options = {"deadline": "realtime", "cpu-used": "8"}
        return clips.encode(frames, codec="libvpx-vp9", container="webm", b_frames=0, options=options)
    return clips.encode(frames)


_numbers = itertools.count()


def _write(root: Path, *paths: str) -> None:
    """Videos that are real, and texts that are not asked for here."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(_encoded(Path(path).suffix, next(_numbers) % 4))


def _text(root: Path, path: str, content: object) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(content if isinstance(content, str) else json.dumps(content))


def _kinetics(root: Path) -> None:
    _text(
        root,
        "annotations/train.csv",
        f"""{HEADER}
zumba,AAAAAAAAAAA,1,11,train
"air drumming",-BBBBBBBBBB,20,30,train
"passing American football (in game)",CCCCCCCCCC_,0,10,train
abseiling,DDDDDDDDDDD,5,15,train
abseiling,EEEEEEEEEEE,5,15,train
""",
    )
    _text(
        root,
        "annotations/val.csv",
        f"{HEADER}\nzumba,VVVVVVVVVVV,100,110,val\nabseiling,WWWWWWWWWWW,0,9,val\n",
    )
    _text(root, "annotations/test.csv", "youtube_id,time_start,time_end,split\nXXXXXXXXXXX,0,10,test\n")
    _write(root, "train/AAAAAAAAAAA_000001_000011.mp4", "train/-BBBBBBBBBB_000020_000030.mp4")
    _write(
        root,
        "train/CCCCCCCCCC_.mp4",
        "val/VVVVVVVVVVV_000100_000110.mp4",
        "val/WWWWWWWWWWW_000000_000009.mp4",
    )
    (root / "train" / "DDDDDDDDDDD_000005_000015.mp4").write_bytes(b"<html>not a video</html>")


def _ssv2(root: Path) -> None:
    names = ["Pushing something from left to right", "Pushing something from right to left", "[Zing]"]
    names[2] = "Something falling like a feather or paper"
    _text(root, "labels/labels.json", {names[1]: "1", names[0]: "0", names[2]: "2"})
    _text(
        root,
        "labels/train.json",
        [
            {"id": "78687", "label": "pushing a cup", "template": "Pushing [something] from right to left"},
            {"id": "42326", "label": "a leaf", "template": "[Something] falling like a feather or paper"},
            {"id": "5", "label": "pushing a cup", "template": "Pushing [something] from left to right"},
        ],
    )
    _text(root, "labels/validation.json", [{"id": "9", "template": "Pushing [something] from left to right"}])
    _text(root, "labels/test.json", [{"id": "1420"}])
    _write(root, *(f"20bn-something-something-v2/{video}.webm" for video in ("78687", "42326", "9", "1420")))


def _ucf101(root: Path) -> None:
    _text(root, "ucfTrainTestlist/classInd.txt", "1 ApplyEyeMakeup\n2 YoYo\n3 HandstandPushups\n\n")
    for fold, (ours, theirs) in enumerate([("08", "01"), ("01", "08")], start=1):
        _text(
            root,
            f"ucfTrainTestlist/trainlist0{fold}.txt",
            f"ApplyEyeMakeup/v_ApplyEyeMakeup_g{ours}_c01.avi 1\r\nYoYo/v_YoYo_g{ours}_c01.avi 2\r\n"
            f"HandstandPushups/v_HandStandPushups_g{ours}_c01.avi 3\r\n",
        )
        _text(
            root,
            f"ucfTrainTestlist/testlist0{fold}.txt",
            f"ApplyEyeMakeup/v_ApplyEyeMakeup_g{theirs}_c01.avi\nYoYo/v_YoYo_g{theirs}_c01.avi\n",
        )
    for group in ("01", "08"):
        _write(root, *(f"UCF-101/{label}/v_{label}_g{group}_c01.avi" for label in ("ApplyEyeMakeup", "YoYo")))
    _write(root, "UCF-101/HandstandPushups/v_HandStandPushups_g08_c01.avi")


def _hmdb51(root: Path) -> None:
    hair, clap = "April_09_brush_hair_u_nm_np1_ba_goo_{}", "#20_Rhythm_clap_u_nm_np1_fr_goo_{}"
    for label, name in (("clap", clap), ("brush_hair", hair)):
        for fold, parts in ((1, "120"), (2, "012"), (3, "112")):
            lines = "".join(f"{name.format(number)}.avi {part} \n" for number, part in enumerate(parts))
            _text(root, f"testTrainMulti_7030_splits/{label}_test_split{fold}.txt", lines)
        _write(root, *(f"videos/{label}/{name.format(number)}.avi" for number in range(3)))


def _diving48(root: Path) -> None:
    _text(
        root,
        "Diving48_vocab.json",
        [["Back", "15som", "05Twis", "FREE"], ["Forward", "Dive", "NoTwis", "PIKE"]],
    )
    entry = {"start_frame": 0, "end_frame": 48}
    _text(
        root,
        "Diving48_V2_train.json",
        [
            {"vid_name": "-mmq0PT-u8k_00155", "label": 1, **entry},
            {"vid_name": "a_00001", "label": 0, **entry},
        ],
    )
    _text(root, "Diving48_V2_test.json", [{"vid_name": "b_00001", "label": 0, **entry}])
    _write(root, "rgb/-mmq0PT-u8k_00155.mp4", "rgb/a_00001.mp4", "rgb/b_00001.mp4")


def _contents(data_dir: Path, name: str) -> tuple[manifest.Manifest, dict[str, dict[str, str]]]:
    """The manifest, and what a reader sees: of each split the ids with their labels."""
    directory = dataset.find_dataset(name, data_dir)
    seen = {}
    for split in manifest.read(directory).splits:
        opened = dataset.open_dataset(name, data_dir, split)
        examples = [opened[index] for index in range(len(opened))]
        seen[split] = {example.id: opened.labels[example.label] for example in examples}
        assert all(example.frames > 1 for example in examples)
    return manifest.read(directory), seen


@pytest.mark.parametrize("name", ["kinetics400", "kinetics600", "kinetics700"])
def test_kinetics(name, tmp_path, capsys):
    _kinetics(tmp_path / "k")
    args = (name, "--source", tmp_path / "k", "--data_dir", tmp_path / "data")
    assert prepare(*args) == 0
    output = capsys.readouterr()
    contents, seen = _contents(tmp_path / "data", name)
    assert contents.labels == ("abseiling", "air drumming", "passing American football (in game)", "zumba")
    assert contents.sampling == "dense" and "data.sampling=dense" in output.out
    assert seen == {
        "train": {
            "AAAAAAAAAAA_000001_000011": "zumba",
            "-BBBBBBBBBB_000020_000030": "air drumming",
            "CCCCCCCCCC__000000_000010": "passing American football (in game)",
        },
        "val": {"VVVVVVVVVVV_000100_000110": "zumba", "WWWWWWWWWWW_000000_000009": "abseiling"},
    }
    damaged, absent = contents.splits["train"].rejected
    assert damaged.source == "DDDDDDDDDDD_000005_000015" and "not on disk" not in damaged.reason
    assert (absent.source, absent.reason) == ("EEEEEEEEEEE_000005_000015", "not on disk")
    assert "note: 1 of the 5 videos of `train` are not on disk" in output.err
    assert re.search(r"note: Kinetics-\d00 has \d00 labels, but 4 are listed", output.err)
    assert prepare(*args) == 0
    assert "already prepared" in capsys.readouterr().out


def test_ssv2(tmp_path, capsys):
    _ssv2(tmp_path / "s")
    assert prepare("ssv2", "--source", tmp_path / "s", "--data_dir", tmp_path / "data") == 0
    contents, seen = _contents(tmp_path / "data", "ssv2")
    left, right, falling = contents.labels
    assert left == "Pushing something from left to right" and falling.startswith("Something falling")
    assert opposites.mirrored_labels(contents.labels) == {0: 1, 1: 0, 2: 2}
    assert seen == {"train": {"78687": right, "42326": falling}, "val": {"9": left}}
    assert [rejected.source for rejected in contents.splits["train"].rejected] == ["5"]
    assert contents.sampling == "uniform" and "data.sampling=uniform" in capsys.readouterr().out


@pytest.mark.parametrize(("fold", "train", "val"), [(1, "08", "01"), (2, "01", "08")])
def test_ucf101(fold, train, val, tmp_path):
    _ucf101(tmp_path / "u")
    args = ("--source", tmp_path / "u", "--data_dir", tmp_path / "data", "--fold", fold)
    assert prepare("ucf101", *args) == 0
    contents, seen = _contents(tmp_path / "data", "ucf101")
    assert contents.labels == ("ApplyEyeMakeup", "YoYo", "HandstandPushups")
    assert {"ApplyEyeMakeup", "YoYo"} <= set(seen["train"].values()) and contents.sampling == ""
    assert f"ApplyEyeMakeup/v_ApplyEyeMakeup_g{train}_c01" in seen["train"]
    assert seen["val"] == {f"{label}/v_{label}_g{val}_c01": label for label in ("ApplyEyeMakeup", "YoYo")}
    # Group 01 of the third class is not on disk.
    assert len(contents.splits["train"].rejected) == fold - 1


@pytest.mark.parametrize(("fold", "parts"), [(1, "120"), (2, "012"), (3, "112")])
def test_hmdb51(fold, parts, tmp_path):
    _hmdb51(tmp_path / "h")
    args = ("--source", tmp_path / "h", "--data_dir", tmp_path / "data", "--fold", fold, "--name", "mine")
    assert prepare("hmdb51", *args) == 0
    contents, seen = _contents(tmp_path / "data", "mine")
    assert contents.labels == ("brush_hair", "clap")
    for split, part in (("train", "1"), ("val", "2")):
        numbers = sorted({int(video[-1]) for video in seen[split]})
        assert numbers == [number for number in range(3) if parts[number] == part]
        assert all(video.startswith(f"{label}/") for video, label in seen[split].items())


def test_diving48(tmp_path):
    _diving48(tmp_path / "d")
    assert prepare("diving48", "--source", tmp_path / "d", "--data_dir", tmp_path / "data") == 0
    contents, seen = _contents(tmp_path / "data", "diving48")
    assert contents.labels == ("Back+15som+05Twis+FREE", "Forward+Dive+NoTwis+PIKE")
    assert seen["train"] == {"-mmq0PT-u8k_00155": contents.labels[1], "a_00001": contents.labels[0]}
    assert seen["val"] == {"b_00001": contents.labels[0]} and contents.sampling == "uniform"


@pytest.mark.parametrize("name", ["folder", "ssv2"])
def test_lists(name, tmp_path, capsys):
    _write(tmp_path / "v", "a b/one.mp4", "a b/two.webm", "c/three.mp4")
    _text(tmp_path, "labels.txt", "a b\nc\n")
    absolute = tmp_path / "v" / "c" / "three.mp4"
    _text(tmp_path, "train.txt", f"a b/one.mp4 0\n\n{absolute} 1\nc/gone.mp4 1\n")
    _text(tmp_path, "val.txt", "a b/../a b/two.webm,0\n")
    args = [
        name,
        "--source",
        tmp_path / "v",
        "--data_dir",
        tmp_path / "data",
        "--labels",
        tmp_path / "labels.txt",
    ]
    args += ["--train_list", tmp_path / "train.txt"]
    assert prepare(*args, "--val_list", tmp_path / "val.txt") == 0
    contents, seen = _contents(tmp_path / "data", name)
    assert seen == {"train": {"a b/one.mp4": "a b", "c/three.mp4": "c"}, "val": {"a b/two.webm": "a b"}}
    assert [rejected.source for rejected in contents.splits["train"].rejected] == ["c/gone.mp4"]
    assert contents.sampling == ("uniform" if name == "ssv2" else "")
    capsys.readouterr()
    assert prepare(*args, "--name", "kinetics400") == 0
    assert "note: there are no annotations of `val`" in capsys.readouterr().err
    assert list(_contents(tmp_path / "data", "kinetics400")[1]) == ["train"]


@pytest.mark.parametrize(
    ("suffix", "codec", "tag"), [(".mp4", "h264", "avc1"), (".avi", "mpeg4", "XVID"), (".webm", "vp9", None)]
)
def test_the_miniatures_are_encoded_as_the_datasets_are(suffix, codec, tag):
    with av.open(io.BytesIO(_encoded(suffix, 0))) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == codec and tag in (None, stream.codec_context.codec_tag)


TREES = {"kinetics400": _kinetics, "ssv2": _ssv2, "ucf101": _ucf101, "hmdb51": _hmdb51, "diving48": _diving48}


def _labels_of(name: str, root: Path) -> tuple[str, ...]:
    return registry.OFFICIAL[name].annotations(tree.Tree(root), 1).labels


@pytest.mark.skipif(not LABELS.is_dir(), reason=f"the published label maps are not in {LABELS}")
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("kinetics400", "kinetics_label_map_k400.txt"),
        ("kinetics600", "kinetics_label_map_k600.txt"),
        ("kinetics700", "kinetics_label_map_k700.txt"),
        ("ssv2", "sthv2_label_map.txt"),
        ("ucf101", "ucf101_label_map.txt"),
        ("hmdb51", "hmdb51_label_map.txt"),
        ("diving48", "diving48_label_map.txt"),
    ],
)
def test_labels_are_in_the_published_order(name, file, tmp_path):
    published = tuple((LABELS / file).read_text().splitlines())
    mixed = sorted(published, key=lambda label: label[::-1])
    assert len(published) == registry.OFFICIAL[name].classes
    if name.startswith("kinetics"):
        with (tmp_path / "train.csv").open("w", newline="") as table:
            writer = csv.writer(table)
            writer.writerow(HEADER.split(","))
            writer.writerows([label, f"id{row}", 0, 10, "train"] for row, label in enumerate(mixed))
    elif name == "ssv2":
        _text(
            tmp_path,
            "something-something-v2-labels.json",
            {label: str(published.index(label)) for label in mixed},
        )
        bracketed = mixed[0].replace("something", "[something]")
        _text(tmp_path, "something-something-v2-train.json", [{"id": 7, "template": bracketed}])
    elif name == "ucf101":
        _text(
            tmp_path, "classInd.txt", "".join(f"{n} {label}\n" for n, label in enumerate(published, start=1))
        )
        _text(tmp_path, "trainlist01.txt", f"{mixed[0]}/v.avi {published.index(mixed[0]) + 1}\n")
    elif name == "hmdb51":
        for label in mixed:
            _text(tmp_path, f"{label}_test_split1.txt", "x.avi 1\n")
    else:
        _text(tmp_path, "Diving48_vocab.json", [label.split("+") for label in published])
        _text(tmp_path, "Diving48_V2_train.json", [{"vid_name": "x", "label": 0}])
    assert _labels_of(name, tmp_path) == published


def _append(path: str):
    return lambda text: lambda root: (root / path).write_text((root / path).read_text() + text)


def _replace(path: str, content: object):
    return lambda root: _text(root, path, content)


def _remove(*patterns: str):
    return lambda root: [path.unlink() for pattern in patterns for path in list(root.rglob(pattern))]


ROW = {"id": "3", "template": "Pushing [something] from left to right"}
_train, _val = _append("annotations/train.csv"), _append("annotations/val.csv")
KINETICS = [
    (_train("zumba,F,1\n"), r"train\.csv row 7: 3 columns instead of 5"),
    (_train("zumba,../F,1,2,train\n"), r"row 7: youtube_id `\.\./F` should"),
    (_train("zumba,F,x,2,train\n"), r"row 7: time_start `x` is not"),
    (_train("zumba,F,1,2,holdout\n"), r"row 7: unknown split `holdout`"),
    (_train(",F,1,2,train\n"), r"row 7: the label is empty"),
    (_train('"zumba,F,1,2,train\n'), r"row 7: it is not CSV"),
    (
        _train("".join(f"l{n},F{n},1,2,train\n" for n in range(400))),
        r"has 400 .*`air drumming`, in .*csv row 3",
    ),
    (_val("zumbe,F,1,2,val\n"), r"val\.csv row 4: .*`zumbe`.*`zumba`"),
    (
        _val("zumba,AAAAAAAAAAA,1,11,val\n"),
        r"val\.csv row 4: AAAAAAAAAAA_000001_000011 is already in .*csv row 2, in another split",
    ),
    (_replace("train_2.csv", f"{HEADER}\nzumba,F,1,2,train\n"), r"both .* list `train`"),
    (
        _replace("clips.csv", "label,youtube_id\nzumba,F\n"),
        r"clips\.csv row 1: there is no column `time_start`",
    ),
    (
        _replace("all.csv", "label,youtube_id,time_start,time_end\nzumba,F,1,2\n"),
        r"all\.csv has no column `split`, and its name",
    ),
    (_remove("train.csv", "val.csv"), r"no annotations with clips of train or val"),
    (_remove("V*.mp4", "W*.mp4"), r"none of the 2 videos that .*val\.csv lists .*VVVVV_000100_000110"),
    (
        lambda root: _write(
            root, "copy/AAAAAAAAAAA_000001_000011.mp4", "copies/AAAAAAAAAAA_000001_000011.mp4"
        ),
        r"row 2: both .*copies.* and .*copy.* may be its video",
    ),
]
SSV2 = [
    (_replace("labels/train.json", [ROW, ROW | {"template": "Pushing"}]), r"row 2 of the list: .*`Pushing`"),
    (_replace("labels/train.json", [ROW | {"template": [ROW]}]), r"row 1 .* should be a text, not a list"),
    (_replace("labels/train.json", [ROW, {"id": "4"}]), r"train\.json row 2 of the list: it should be an"),
    (_replace("labels/train.json", [ROW | {"id": "../4"}]), r"row 1 of the list: id `\.\./4`"),
    (_replace("labels/train.json", '[\n{"id": 3,\n}]'), r"train\.json row 3: it is not JSON"),
    (_replace("labels/train.json", "[" * 100_000), r"train\.json is not JSON that can be read"),
    (_replace("labels/train.json", {}), r"train\.json should be a list"),
    (_replace("labels/train.json", []), r"train\.json lists no video"),
    (
        _replace("labels/validation.json", [ROW | {"id": 78687}]),
        r"validation\.json row 1.*: 78687 is already",
    ),
    (_replace("labels/labels.json", {"a": "0", "b": "2"}), r"labels\.json: .*`b` has 2 instead of 1"),
    (_replace("labels/labels.json", {"a": "9" * 5000}), r"labels\.json: `a` should have a whole number"),
    (_replace("labels/labels.json", {"a": 0, " a": 1}), r"the label `a` twice"),
    (_replace("labels/labels.json", {"a\n": 0, "b\0": 1}), r"characters that cannot be printed"),
    (_replace("train.json", [ROW]), r"both .*train\.json and .*train\.json may be train\.json"),
    (_remove("labels.json"), r"labels\.json is not in "),
    (_remove("train.json", "validation.json"), r"train\.json or validation\.json is not in "),
]
_train, _val = _append("ucfTrainTestlist/trainlist01.txt"), _append("ucfTrainTestlist/testlist01.txt")
UCF101 = [
    (_train("YoYo/v.avi 1\n"), r"row 4: `YoYo` is 2 in .*not `1`"),
    (_train("YoYos/v.avi 2\n"), r"row 4: .*`YoYos`.*`YoYo`"),
    (_val("../YoYo/v.avi\n"), r"row 3: `\.\./YoYo/v\.avi` should be"),
    (_val("v.avi\n"), r"row 3: `v\.avi` should be a class and"),
    (_append("ucfTrainTestlist/classInd.txt")("x Y\n"), r"classInd\.txt row 5: `x Y` should be a number"),
    (_remove("trainlist01.txt", "testlist01.txt"), r"trainlist01\.txt or testlist01\.txt is not in"),
]
_list = _append("testTrainMulti_7030_splits/clap_test_split1.txt")
HMDB51 = [
    (_list("x.avi 3\n"), r"row 4: `x\.avi 3` should"),
    (_list("../x.avi 1\n"), r"row 4: `\.\./x\.avi 1` should"),
    (_remove("*_test_split1.txt"), r"<class>_test_split1\.txt is not in"),
]
DIVING48 = [
    (_replace("Diving48_V2_train.json", [{"vid_name": "a", "label": 2}]), r"row 1 .* label 2 is not one"),
    (_replace("Diving48_V2_train.json", [{"vid_name": "a/b", "label": 1}]), r"vid_name `a/b` should"),
    (_replace("Diving48_vocab.json", [["a"], 3]), r"Diving48_vocab\.json should be a list of classes"),
    (_replace("Diving48_vocab.json", {"a": 1}), r"Diving48_vocab\.json should be a list of classes"),
]
BAD = {"kinetics400": KINETICS, "ssv2": SSV2, "ucf101": UCF101, "hmdb51": HMDB51, "diving48": DIVING48}


@pytest.mark.parametrize(
    ("name", "spoil", "reason"), [(name, *case) for name, cases in BAD.items() for case in cases]
)
def test_what_is_wrong_is_said_in_one_line_before_anything_is_written(name, spoil, reason, tmp_path, capsys):
    TREES[name](tmp_path / "source")
    spoil(tmp_path / "source")
    args = (name, "--source", tmp_path / "source", "--data_dir", tmp_path / "data")
    assert prepare(*args) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(reason, line), line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("one.mp4 0\ntwo.mp4", r"list\.txt row 2: `two\.mp4` should be a path and a label number"),
        (
            "path,label\none.mp4,a",
            r"row 1: `path,label` should be .*delete the header; pass a CSV file .* as --source",
        ),
        ("one.mp4 2", r"row 1: the label 2 is not one of 0 to 1"),
        (f"one.mp4 {'9' * 5000}", r"row 1: the label 9{9} is not one of 0 to 1"),
        ("../one.mp4 0", r"row 1: `\.\./one\.mp4` is not below"),
        ("/etc/passwd 0", r"row 1: `/etc/passwd` is not below"),
        (". 0", r"row 1: `\.` is not below"),
        ("\n", r"list\.txt lists no video"),
        (
            "two.mp4 0",
            r"none of the 1 videos that .*list\.txt lists is below .* expected at two\.mp4",
        ),
    ],
)
def test_bad_lists(line, reason, tmp_path, capsys):
    _write(tmp_path / "v", "one.mp4")
    _text(tmp_path, "labels.txt", "a\nb\n")
    _text(tmp_path, "list.txt", line)
    args = ["--source", tmp_path / "v", "--data_dir", tmp_path / "data", "--labels", tmp_path / "labels.txt"]
    assert prepare("folder", *args, "--train_list", tmp_path / "list.txt") == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert re.search(reason, said), said
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["kinetics", "--source", "s"], "did you mean `kinetics"),
        (["ssv2"], "ssv2 needs --source, a directory"),
        (["ssv2", "--source", "s", "--fold", "1"], "--fold 1: there are no folds here"),
        (["ucf101", "--source", "s", "--fold", "4"], "--fold 4: it is 1 to 3"),
        (["ucf101", "--source", "s", "--fold", "0"], "--fold 0: it is 1 to 3"),
        (
            ["ucf101", "--source", "s", "--val_share", "0.1"],
            "--val_share applies to folder",
        ),
        (["ucf101", "--source", "s", "--labels", "l"], "--labels applies to folder and to lists only"),
        (["ucf101", "--source", "s", "--val_list", "l"], "need --labels"),
        (["motion_digits", "--fold", "1"], "--fold does not apply to motion_digits"),
        (["hmdb51", "--source", "s", "--name", "still_digits"], "taken"),
    ],
)
def test_wrong_usage(args, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert prepare(*args, "--data_dir", "d") == 2
    assert reason in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def _rows(root: Path, **scan) -> dict[str, dict[str, object]]:
    """Of each split the sources of its videos by id, relative to `root`."""
    found = locate.scan("kinetics400", root, **scan)
    return {
        split: {
            clip.id: clip.source.reason if isinstance(clip.source, annotations.Absent) else
            clip.source.relative_to(root).as_posix()
            for clip in clips_
        }
        for split, clips_ in found.splits.items()
    }  # fmt: skip


def test_where_kinetics_may_be(tmp_path):
    # No split column, floats for times, another order of columns, class folders in two spellings.
    table = "youtube_id,time_start,time_end,label,is_cc\n"
    _text(
        tmp_path, "kinetics_train.csv", table + "a,1.0,2.0,air drumming,0\nb,1,2,air drumming,0\nc,1,2,x,0\n"
    )
    _text(tmp_path, "deep/er/k400_validate.csv", table + "c,3,4,x,0\nb,3,4,x,0\nd,1,2,x,1\n")
    _text(tmp_path, "deep/er/still/val.csv", table + "nobody,1,2,x,0\n")  # too deep to be found
    a = "videos_train/air drumming/a_000001_000002.mp4"
    _write(tmp_path, a, "videos_train/air_drumming/b_000001_000002.mkv", "videos_val/c.mp4")
    _write(tmp_path, "train_256/d.mp4", ".trash/c_000001_000002.mp4", "b.mp4")
    assert _rows(tmp_path) == {
        "train": {
            "a_000001_000002": a,
            "b_000001_000002": "videos_train/air_drumming/b_000001_000002.mkv",
            "c_000001_000002": "not on disk",  # of c.mp4 the folder says that it is the other row's
        },
        "val": {
            "c_000003_000004": "videos_val/c.mp4",
            "b_000003_000004": "not on disk",  # b.mp4 may be either row's
            "d_000001_000002": "not on disk",  # d.mp4 is in a folder of the other split
        },
    }


def test_one_table_for_both_splits_and_clips_of_one_video(tmp_path):
    rows = ["x,a,1,2,train", "x,a,3,4,train", "y,a,3,4,train", "x,b,1,2,validate", "x,c,1,2,test"]
    _text(tmp_path, "kinetics.csv", "\n".join([HEADER, *rows]))
    _write(tmp_path, "a.mp4", "a_000003_000004.mp4", "b.mp4", "c.mp4")
    (again,) = [clip for clip in locate.scan("kinetics400", tmp_path).splits["train"] if clip.bytes == 0][1:]
    assert again.id == "a_000003_000004" and again.source.reason.endswith(
        "csv row 4 repeats row 3, where its label is `x`"
    )
    assert _rows(tmp_path)["val"] == {"b_000001_000002": "b.mp4"}
    assert _rows(tmp_path)["train"]["a_000001_000002"] == "not on disk"  # a.mp4 is whose?


def test_replacements_and_links(tmp_path):
    """Kinetics-400 as it is downloaded: damaged videos once more, and links by class beside the files."""
    _text(tmp_path, "annotations/train.csv", f"{HEADER}\nx,a,1,2,train\nx,b,1,2,train\n")
    good = "replacement/replacement_for_corrupted_k400/a_000001_000002.mp4"
    _write(tmp_path, "train/a_000001_000002.mp4", good, "train/b_000001_000002.mp4")
    (tmp_path / "videos" / "train" / "x").mkdir(parents=True)
    (tmp_path / "videos" / "train" / "x" / "b_000001_000002.mp4").symlink_to(
        tmp_path / "train/b_000001_000002.mp4"
    )
    (tmp_path / "videos" / "up").symlink_to(tmp_path)
    (tmp_path / "train" / "c_000001_000002.mp4").symlink_to(tmp_path / "gone.mp4")
    assert _rows(tmp_path) == {
        "train": {"a_000001_000002": good, "b_000001_000002": "videos/train/x/b_000001_000002.mp4"}
    }


def test_a_dataset_that_is_not_there_is_named_with_its_command(tmp_path):
    with pytest.raises(UserError, match=r"prepare ssv2 --source \.\.\. --data_dir"):
        dataset.open_dataset("ssv2", tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "sampling", "warned"),
    [("ssv2", "dense", True), ("ssv2", "uniform", False), ("kinetics400", "uniform", False)],
)
def test_a_run_that_samples_unlike_its_dataset_is_warned(name, sampling, warned, tmp_path, caplog):
    TREES[name](tmp_path / "source")
    assert prepare(name, "--source", tmp_path / "source", "--data_dir", tmp_path) == 0
    opened = dataset.open_dataset(name, tmp_path, "train")
    with caplog.at_level(logging.WARNING):
        announce._warn_of_sampling(config.Config(data=config.Data(name=name, sampling=sampling)), opened)
    assert [record.getMessage() for record in caplog.records] == warned * [
        "`data.sampling` is dense, but the labels of ssv2 describe whole videos: set `data.sampling=uniform`"
    ]


# What anybody may have in a file: the readers either read it, or say in one line what is wrong.

_cells = st.one_of(
    st.sampled_from(["", "0", "1", "2.0", "train", "val", "zumba", "a", "../a", '"', "\0", "\ud800"]),
    st.text(),
)
_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _cells),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["id", "template", "vid_name", "label", "a", "b"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)
_entries = st.lists(
    st.fixed_dictionaries(
        {"id": _values, "template": _values, "vid_name": _values, "label": _values | st.integers(0, 2)}
    ),
    max_size=4,
)


def _read(name: str, files: dict[str, bytes], root: Path) -> annotations.Annotations | None:
    """What is read of the files, or None where they are refused in one line."""
    for path in root.iterdir():
        path.unlink()
    for path, content in files.items():
        (root / path).write_bytes(content)
    try:
        if name == "lists":
            return lists.read({"train": root / "list.txt"}, ("a", "b"), root)
        found = registry.OFFICIAL[name].annotations(tree.Tree(root), 1)
    except UserError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000
        str(error).encode("utf-8", "backslashreplace")
        return None
    assert len(set(found.labels)) == len(found.labels)
    return found


def _check(found: annotations.Annotations | None) -> None:
    for split, rows in found.splits.items() if found else ():
        assert split in ("train", "val")
        for row in rows:
            assert row.label in found.labels
            assert row.path or not any("/" in stem for stem in row.stems)
            assert ".." not in Path(row.path).parts and not Path(row.path).is_absolute()
            manifest.digest([row.id, row.label])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@settings(max_examples=60, deadline=None)
@given(table=st.lists(st.lists(_cells, max_size=6), max_size=4), header=st.booleans())
def test_any_table(table, header, scratch):
    rows = [HEADER.split(",")] * header + table
    text = "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass")
    _check(_read("kinetics400", {"train.csv": text}, scratch))


@settings(max_examples=60, deadline=None)
@given(labels=st.dictionaries(_cells, _values, max_size=3) | _values, entries=_entries | _values)
@example(labels={"zumba": 0}, entries=[{"id": 3, "template": "[zumba]"}])
def test_any_json(labels, entries, scratch):
    labels, entries = json.dumps(labels).encode(), json.dumps(entries).encode()
    _check(_read("ssv2", {"labels.json": labels, "train.json": entries}, scratch))
    _check(_read("diving48", {"Diving48_vocab.json": entries, "Diving48_V2_train.json": labels}, scratch))
    vocabulary = b'[["a", "b"], ["c"], ["d"]]'
    _check(_read("diving48", {"Diving48_vocab.json": vocabulary, "Diving48_V2_train.json": entries}, scratch))


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.builds("{}{}{}".format, _cells, st.sampled_from([" ", "/", "\t", ""]), _cells)),
    raw=st.binary(),
)
def test_any_lines(lines, raw, scratch):
    for text in ("\n".join(lines).encode("utf-8", "surrogatepass"), raw):
        _check(_read("ucf101", {"classInd.txt": text, "trainlist01.txt": text}, scratch))
        _check(_read("ucf101", {"classInd.txt": b"1 a\n2 zumba", "trainlist01.txt": text}, scratch))
        _check(_read("hmdb51", {"a_test_split1.txt": text}, scratch))
        _check(_read("lists", {"list.txt": text}, scratch))


_names = st.text("abcXYZ ()'.,\"-", min_size=1).map(str.strip).filter(bool)
_ids = st.text("abcXYZ019_-", min_size=1)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(_names, _ids, st.integers(0, 999_999), st.integers(0, 999_999)),
        min_size=1,
        unique_by=lambda row: (row[1], row[2], row[3]),
    )
)
def test_what_is_in_a_kinetics_table_comes_out(rows, scratch):
    lines = [HEADER.split(","), *([*map(str, row), "train"] for row in rows)]
    quoted = "\r\n".join(
        ",".join(f'"{cell}"' for cell in (c.replace('"', '""') for c in line)) for line in lines
    )
    found = _read("kinetics400", {"any.txt": quoted.encode()}, scratch)
    assert found.labels == tuple(sorted({label for label, *_ in rows}))
    assert [(row.label, row.id) for row in found.splits["train"]] == [
        (label, f"{video}_{start:06d}_{end:06d}") for label, video, start, end in rows
    ]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(_names, st.integers(0, 1)), min_size=1),
    separator=st.sampled_from([" ", "\t", ",", "  "]),
)
def test_what_is_in_a_list_comes_out(rows, separator, scratch):
    rows = [(f"v{name}.mp4", number) for name, number in rows]
    text = "\n".join(f"{name}{separator}{number}" for name, number in rows)
    found = _read("lists", {"list.txt": text.encode()}, scratch)
    assert [(row.path, row.label) for row in found.splits["train"]] == [(name, "ab"[n]) for name, n in rows]
