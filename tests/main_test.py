"""The commands as a user calls them: a mistake is one line on stderr and exit status 1 or 2."""

import subprocess
import sys

import pytest

CONFIG = "configs/quickstart.py"


def call(module, *arguments):
    command = [sys.executable, "-m", f"inti_jax.{module}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    "module",
    ["main", "ablate", "prepare", "plan", "predict", "features", "report", "convert", "doctor"],
)
def test_help(module):
    process = call(module, "--help")
    assert process.returncode == 0
    assert process.stdout.startswith(f"usage: python -m inti_jax.{module}")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--config", "configs/absent.py"], 2, "there is no such file"),
        (["--config", f"{CONFIG}:compresion=none"], 2, "did you mean `compression`"),
        (["--config", f"{CONFIG}:compression=max"], 2, "it should be 'none', 'inti', 'mean'"),
        (["--config", CONFIG, "--config.trian.steps=3"], 2, "unknown key `trian`; did you mean `train`"),
        (["--config", CONFIG, "--config.train.step=3"], 2, "did you mean `steps`"),
        (["--config", CONFIG, "--config.train.steps=many"], 2, "`train.steps` is 'many': it should be"),
        (["--config", CONFIG, "--config.data.num_frames=5"], 2, "should be divisible by 2"),
        (["--config", CONFIG, "--config.model.compression.after=(9,)"], 2, "the depth of tiny"),
        (["--config", CONFIG, "--config.data.data_dir=nowhere"], 1, "inti_jax.prepare motion_digits"),
        (["--config", CONFIG, "--config.mesh.data=16"], 2, "`mesh` is data=16"),
        (["--config", CONFIG, "--coordinator_address", "localhost:1"], 2, "give all three, or none"),
        (["--config", CONFIG, "--mode", "eval"], 2, "the directory of a run?"),
        (["--config", CONFIG, "--config.data.data_dir=gs://b/data"], 2, "mount the bucket"),
        (["--config", CONFIG, "--profile", "10:15"], 2, "write it as steps=FIRST:LAST"),
        (["--config", CONFIG, "--workers", "3"], 2, "unknown argument: --workers"),
    ],
)
def test_a_mistake_is_one_clear_line(arguments, status, message, tmp_path):
    process = call("main", *arguments, "--workdir", tmp_path)
    *usage, line = process.stderr.strip().splitlines()
    assert process.returncode == status
    assert message in line and "Traceback" not in process.stderr
    assert not usage or usage[0].startswith("usage:")
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_that_is_a_file_is_one_clear_line(tmp_path):
    (tmp_path / "run").write_text("")
    process = call("main", "--config", CONFIG, "--mode", "eval", "--workdir", tmp_path / "run")
    assert process.returncode in (1, 2)
    assert str(tmp_path / "run") in process.stderr and "Traceback" not in process.stderr


def test_a_workdir_that_is_a_url_is_refused(tmp_path):
    process = call("main", "--config", CONFIG, "--workdir", "gs://bucket/run")
    assert process.returncode == 2 and "error: gs://bucket/run is a URL" in process.stderr


@pytest.mark.parametrize("content", ["[]", "{", '{"dataset": 3, "backbone": 1}'])
def test_a_damaged_config_json_is_one_clear_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    process = call("predict", "--checkpoint", tmp_path, "video.mp4")
    (line,) = process.stderr.strip().splitlines()
    assert process.returncode == 2 and str(tmp_path / "config.json") in line


def test_a_config_file_without_get_config_is_named(tmp_path):
    (tmp_path / "empty.py").write_text("")
    process = call("main", "--config", tmp_path / "empty.py", "--workdir", tmp_path / "run")
    assert process.returncode == 2 and "does not define get_config()" in process.stderr


def test_a_config_file_can_import_its_neighbour(tmp_path):
    (tmp_path / "neighbour.py").write_text("from inti_jax.config import ConfigError\n")
    config = tmp_path / "config.py"
    config.write_text(
        "import neighbour\n\ndef get_config():\n    raise neighbour.ConfigError('found the neighbour')\n"
    )
    process = call("main", "--config", config, "--workdir", tmp_path / "run")
    assert process.returncode == 2 and process.stderr.splitlines()[-1] == "error: found the neighbour"


def test_a_config_file_that_fails_names_its_error(tmp_path):
    config = tmp_path / "broken.py"
    config.write_text("def get_config():\n    return undefined_name\n")
    process = call("main", "--config", config, "--workdir", tmp_path / "run")
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1].startswith(f"error: --config {config}")
    assert "undefined_name" in process.stderr
