import dataclasses
import json
import os
import pickle
import pwd
from pathlib import Path

import pytest

from inti_jax import config
from inti_jax.config import ConfigError
from inti_jax.data import check
from inti_jax.data.builders.motion_digits import MotionDigits
from inti_jax.data.dataset import open_dataset
from inti_jax.errors import UsageError
from inti_jax.host.paths import local_path
from tests.commands import call
from tests.configs import tiny


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_a_leading_tilde_is_the_home_directory(home):
    assert local_path("~") == home
    assert local_path("~/data/x") == local_path(Path("~/data/x")) == home / "data" / "x"
    assert local_path("data/~/x") == Path("data/~/x")
    user = pwd.getpwuid(os.getuid())
    assert local_path(f"~{user.pw_name}/x") == Path(user.pw_dir, "x")


def test_a_file_whose_name_begins_with_a_tilde_is_itself_however_often_it_is_read(home):
    Path("~nobody.mp4").write_text("")
    assert local_path("~nobody.mp4").samefile("~nobody.mp4")
    for name in ("./~nobody.mp4", "./~"):
        once = local_path(name)
        assert once == local_path(str(once)) == Path.cwd() / name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("~absent_user/x", "there is no user 'absent_user'"),
        ("gs://bucket/x", "only a path on this machine"),
        ("", "it is empty"),
        ("a\0b", "it has a null character"),
    ],
)
def test_what_is_no_path_is_refused(home, text, message):
    with pytest.raises(UsageError, match=message):
        local_path(text)


def test_the_paths_of_a_config_are_expanded_once(home):
    settings = tiny("~/data", model__pretrained="~/b16.safetensors", model__start_from="~/a.safetensors")
    assert settings.data.data_dir == str(home / "data")
    assert settings.model.pretrained == str(home / "b16.safetensors")
    assert settings.model.start_from == str(home / "a.safetensors")
    assert tiny("data").model.pretrained == "random"
    with pytest.raises(ConfigError, match=r"`data.data_dir`: ~absent_user/x: there is no user"):
        tiny("~absent_user/x")


def test_the_paths_of_a_config_may_have_any_bytes(tmp_path):
    name = os.fsdecode(b"\xff \xc3 \xf0\x9f\x98\x80 [1]")
    settings = tiny(tmp_path / name)
    assert settings.data.data_dir == str(tmp_path / name)
    assert config.from_dict(json.loads(json.dumps(dataclasses.asdict(settings)))) == settings


def test_a_dataset_below_any_name_is_built_checked_and_read(tmp_path):
    data_dir = tmp_path / os.fsdecode(b"data[1] *\\\n\xff {}%25")
    directory = MotionDigits(data_dir=data_dir, movements={"train": 1, "val": 1}).build()
    assert list(check.differences(directory)) == []
    dataset = open_dataset("motion_digits", data_dir, "train")
    elsewhere = pickle.loads(pickle.dumps(dataset))  # as in a worker process
    assert dataset[1].video == elsewhere[1].video and dataset.directory == directory


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("main", ["--config=~/absent.py", "--workdir=~/run"]),
        ("main", ["--config=configs/quickstart.py", "--workdir=~/run", "--config.data.data_dir=~/absent"]),
        ("bench", ["--data_dir=~/absent", "--name=x"]),
        ("predict", ["--checkpoint=~/absent", "video.mp4"]),
        ("convert", ["--to=openai", "~/absent", "--out=~/f"]),
        ("report", ["--out=~/out", "~/absent"]),
        ("prepare", ["folder", "--source=~/absent", "--data_dir=~/data"]),
    ],
)
def test_commands_expand_the_tilde(module, arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    process = call(module, *arguments)
    assert process.returncode in (1, 2) and str(tmp_path / "absent") in process.stderr
    assert not Path("~").exists()
