"""Collect the videos that a command line names: files, folders and lists."""

import argparse
import io
import os
import sys
from pathlib import Path

import pytest

from inti_jax.errors import UsageError, UserError
from inti_jax.evaluation import inputs


def collect(*words):
    parser = argparse.ArgumentParser()
    inputs.add_arguments(parser)
    return inputs.collect(parser.parse_args(["--checkpoint", "run", *map(str, words)]))


@pytest.fixture
def folder(tmp_path):
    """Three videos, one of them by a link to another folder, and what is none."""
    root, elsewhere = tmp_path / "videos", tmp_path / "elsewhere"
    for path in ("b.mp4", "a.MOV", "a.json", "notes.txt", ".hidden.mp4"):
        root.mkdir(exist_ok=True)
        (root / path).write_bytes(b"")
    elsewhere.mkdir()
    (elsewhere / "c.webm").write_bytes(b"")
    (root / "more").symlink_to(elsewhere)
    return root


def test_a_folder_stands_for_the_videos_below_it(folder):
    found = collect(folder)
    assert [str(path.relative_to(folder)) for path in found.paths] == ["a.MOV", "b.mp4", "more/c.webm"]
    assert found.left_out == []


def test_folders_of_frames_are_videos_and_thumbnails_are_not(folder):
    for name in ("frames/img_00001.jpg", "frames/img_00002.jpg", "thumbs/clip1.jpg", "thumbs/clip2.jpg"):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    for name in ("clip1.mp4", "clip2.mp4"):
        (folder / "images" / name).write_bytes(b"")
    names = [
        str(path.relative_to(folder)) for path in collect(folder / "images", folder / "images/frames").paths
    ]
    assert names == ["images/clip1.mp4", "images/clip2.mp4", "images/frames", "images/frames"]


def test_what_below_a_folder_cannot_be_a_video_is_said(folder):
    (folder / "gone.mp4").symlink_to(folder / "nowhere.mp4")
    (folder / "gone.json").symlink_to(folder / "nowhere.json")  # nobody asked for it
    found = collect(folder)
    ((path, reason),) = found.left_out
    assert path == folder / "gone.mp4" and "cannot be reached" in reason and len(found.paths) == 3


def test_files_folders_and_lists_come_in_the_order_in_which_they_are_named(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"caf\xe9 #1.mp4")
    Path("list").write_bytes(b"\xef\xbb\xbfvideos/b.mp4\r\n\r\n" + os.fsencode(name) + b"\nvideos/more")
    expected = ["named.xyz", "videos/b.mp4", name, "videos/more/c.webm"]
    assert list(map(str, collect("named.xyz", "--list", "list").paths)) == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path("list").read_bytes())))
    assert list(map(str, collect("--list", "-").paths)) == expected[1:]


def test_mistakes_are_said_before_a_model_is_read(folder, tmp_path):
    empty, binary, urls = tmp_path / "empty", tmp_path / "binary", tmp_path / "urls"
    empty.write_text("\n\n")
    binary.write_bytes(b"\0\0\0 ftypmp42")
    urls.write_text("a.mp4\nftp://host/b.mp4\n")
    for words, said in (
        ([], "no videos: give files or folders, or a list"),
        (["--list", empty], "it is empty"),
        (["--list", binary], "it is not a text file"),
        (["--list", urls], "urls line 2: ftp://host/b.mp4 is a URL of an unknown kind"),
        (["--list", tmp_path / "absent"], "No such file"),
        ([folder / "notes.txt"], "give a list of videos as --list"),
    ):
        with pytest.raises(UsageError, match=said):
            collect(*words)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="holds no videos"):
        collect(tmp_path / "nothing")
    for out, said in (("labels.json", r"end in \.csv"), ("absent/labels.csv", "no directory")):
        with pytest.raises(UsageError, match=said):
            inputs.check_output(tmp_path / out, ".csv")
