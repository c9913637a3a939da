"""Run the commands of the tutorial and of README's first steps, on small videos and for a few steps."""

import shlex
import shutil

import pytest

import inti_jax
from tests.commands import call
from tests.data import clips
from tests.docs.code_test import of_package
from tests.docs.pages import ROOT, blocks, commands
from tests.pretrained.weights import write_tiny

pytestmark = pytest.mark.usefixtures("shallow", "unreported")

# What the pages say, and what takes its place here.
INSTEAD = {
    "--config.train.steps=100": "--config.train.steps=2",
    "--config.data.resolution=224": "--config.data.resolution=32",
    "--config.model.pretrained=ViT-B-32/openai": "--config.model.pretrained=clip.safetensors",
    "--config.model.compression.after=(3,)": "--config.model.compression.after=(1,)",
}


@pytest.fixture
def videos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    clips.write_classes("my_videos")
    write_tiny(tmp_path / "clip.safetensors")
    return tmp_path


def test_the_lines_that_readme_starts_with_work_exactly_as_written(videos):
    """With fewer steps and without the installation: launch/first_hour.sh does all of it."""
    start = (ROOT / "README.md").read_text().partition("\n## Try it")[0]
    assert start.count("\n") < 40  # on the first screen
    (block,) = [block for block in blocks(ROOT / "README.md") if block.kind == "sh" and block.code in start]
    lines = block.code.splitlines()
    assert len(lines) == 5
    ran = []
    for line in lines:
        words = shlex.split(line.replace(":steps=100", ":steps=2"))
        if (found := of_package(words)) is None:
            assert words[0] in ("python3.11", "pip")
            continue
        name, arguments = found
        done = call("main" if name == "train" else name, *arguments)
        assert done.returncode == 0, (line, done.stderr)
        ran.append(name)
    assert ran == ["prepare", "train", "predict"]
    labels = (videos / "labels.csv").read_text()
    assert labels.count(".mp4") == 8 and "clap" in labels and "wave" in labels


def test_every_command_works_as_written(videos):
    ran = []
    for words in commands(ROOT / "docs" / "tutorial.md"):
        if (found := of_package(words)) is None:
            assert words[0] in ("python3.11", "pip")  # the installation, which wheel_test.py tries
            continue
        name, arguments = found
        arguments = [INSTEAD.get(word, word) for word in arguments]
        if name == "train":
            arguments += ["--config.train.global_batch=8", "--config.eval.batch=8"]
        done = call("main" if name == "train" else name, *arguments)
        assert done.returncode == 0, (words, done.stderr)
        ran.append(name)
    assert ran == ["prepare", "prepare", "train", "train", "predict", "explain", "report"]
    assert (videos / "labels.csv").read_text().count(".mp4") == 8
    assert inti_jax.load("runs/tiny").labels == ("clap", "wave")
    assert (videos / "why.html").exists() and (videos / "runs" / "compared" / "report.html").exists()
    shutil.rmtree(videos / "runs")
