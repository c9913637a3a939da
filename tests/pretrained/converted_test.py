"""A checkpoint where a converted file is meant: converted once, beside it, by all that take one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import inti_jax
from inti_jax.errors import UserError
from inti_jax.pretrained import converted
from inti_jax.pretrained.clip_file import ClipFile
from inti_jax.pretrained.converted import open_converted
from inti_jax.runs.backbone import find_backbone
from tests.commands import convert
from tests.configs import tiny
from tests.pretrained import checkpoints
from tests.processes import environment, free_address


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Write an archive as OpenAI publishes them, complete in itself, of the project's tiny size."""
    model = checkpoints.huggingface_model("small", resolution=64)
    path = tmp_path_factory.mktemp("archive") / "ViT-S-16.pt"
    checkpoints.write_torchscript(path, checkpoints.openai_state_dict(model), resolution=64)
    return path.read_bytes()


@pytest.fixture
def source(archive, tmp_path):
    path = tmp_path / "in it" / "ViT-S-16.pt"
    path.parent.mkdir()
    path.write_bytes(archive)
    return path


def test_an_archive_is_converted_once_and_it_is_said(source, tmp_path, caplog):
    first = inti_jax.load_clip(source)
    cache = source.with_name("ViT-S-16.pt.inti_jax.safetensors")
    assert sorted(path.name for path in source.parent.iterdir()) == [source.name, cache.name]
    assert f"converted {source} to {cache} in" in caplog.text
    written = cache.stat()
    caplog.clear()
    again = inti_jax.load_clip(str(source))
    assert cache.stat() == written and caplog.text == ""
    images = np.zeros((1, 64, 64, 3), np.uint8)
    np.testing.assert_array_equal(first.encode_image(images), again.encode_image(images))
    assert convert(source, "--out", tmp_path / "f.safetensors") == 0
    by_command = ClipFile(tmp_path / "f.safetensors")
    assert ClipFile(cache).hash == by_command.hash and first.description == by_command.description


@pytest.mark.parametrize("change", ["weights", "vocabulary", "damage", "version"])
def test_a_stale_file_is_made_anew(source, monkeypatch, change):
    before = open_converted(source)
    cache = before.path
    if change == "weights":
        model = checkpoints.huggingface_model("small", resolution=64, activation="gelu", layers=1)
        checkpoints.write_torchscript(source, checkpoints.openai_state_dict(model), resolution=64)
    elif change == "vocabulary":
        ids, merges = checkpoints.vocabulary()
        (source.parent / "vocab.json").write_text(json.dumps(ids))
        (source.parent / "merges.txt").write_text("\n".join(merges))
        assert before.description.vocabulary is None
    elif change == "damage":
        cache.write_bytes(cache.read_bytes()[:-8])
    else:
        monkeypatch.setattr(converted, "_VERSION", 0)
    after = open_converted(source)
    assert after.path == cache and (after.hash != before.hash) == (change == "weights")
    assert (after.description.vocabulary is None) == (change != "vocabulary")
    time_of = cache.stat().st_mtime_ns
    open_converted(source)
    assert cache.stat().st_mtime_ns == time_of


def test_a_directory_of_hugging_faces_is_taken_too(tmp_path):
    directory = checkpoints.write_huggingface(tmp_path / "hf", checkpoints.huggingface_model())
    clip = inti_jax.load_clip(directory)
    assert clip.encode_text(["the dog"]).shape == (1, 32)
    assert (tmp_path / "hf.inti_jax.safetensors").is_file()


def test_what_has_to_be_told_more_names_the_command(tmp_path):
    path = tmp_path / "my weights.pth"
    torch.save(checkpoints.openai_state_dict(checkpoints.huggingface_model()), path)
    with pytest.raises(UserError) as caught:
        inti_jax.load_clip(path)
    command = f"`python -m inti_jax.convert '{path}' --out F.safetensors --activation quick_gelu`"
    assert command in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_names_the_command(source):
    blocking = source.with_name(f"{source.name}.inti_jax.safetensors") / "x"
    blocking.parent.mkdir()
    blocking.touch()
    with pytest.raises(UserError, match=r"is not converted yet: .* cannot be written.*`python -m inti_jax\."):
        inti_jax.load_clip(source)
    assert sorted(source.parent.iterdir()) == [source, blocking.parent]


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (b"<html>", "is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"", "is empty"),
        (b"\x02\0\0\0\0\0\0\0{}", "is not a CLIP image transformer"),
        (b"\xff\xff\0\0\0\0\0\0{", "is damaged, truncated or not a safetensors file"),
    ],
)
def test_what_cannot_be_converted_is_called_what_it_is(tmp_path, contents, said):
    path = tmp_path / "clip.safetensors"
    path.write_bytes(contents)
    with pytest.raises(UserError, match=rf"{said}.*give a file that `python -m inti_jax\.convert` wrote"):
        open_converted(path)
    with pytest.raises(UserError, match=rf"config: `model.pretrained`: .*{said}"):
        find_backbone(tiny(model__pretrained=str(path)))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "f.safetensors")
    with pytest.raises(UserError, match="neither a file nor a directory"):
        open_converted(tmp_path / "f.safetensors")


def test_convert_and_verify_do_not_take_one_for_the_other(source, tmp_path, capsys):
    assert convert(source, "--to", "openai", "--out", tmp_path / "f.safetensors") == 1
    assert convert("--verify", source, "--against", source) == 1
    for line in capsys.readouterr().err.strip().splitlines():
        assert "is a torch checkpoint; give a converted file, which `python -m inti_jax.convert" in line


PROCESS = """
import sys
from pathlib import Path
from inti_jax import config
from inti_jax.distributed import joining
flags = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with joining.joined(*flags, config.Hosts()):
    from inti_jax.pretrained import converted
    made, write = [], converted._write
    converted._write = lambda *a, **k: made.append(1) or write(*a, **k)
    print(len(made), converted.open_converted(Path(sys.argv[1])).hash, len(made))
"""


def test_of_two_processes_one_converts(source):
    address = free_address()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, source, address, "2", str(index)],
            env=environment(1), stdout=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    answers = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [answer[-1] for answer in answers] == ["1", "0"]
    assert answers[0][1] == answers[1][1] == open_converted(source).hash
