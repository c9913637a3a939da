"""The commands as a user calls them: a mistake is one line on stderr and exit status 1 or 2."""

import subprocess
import sys
from pathlib import Path

import pytest

from inti_jax import __main__ as program
from tests.commands import call

CONFIG = "configs/quickstart.py"


def start(module, *arguments):
    """Run a command as a process, as a shell does."""
    command = [sys.executable, "-m", f"inti_jax.{module}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_each_module_is_a_program():
    """Of one process, which imports once what they share."""
    modules = [module.removesuffix(".__main__") for module, _ in program.COMMANDS.values()]
    script = """
import contextlib, runpy, sys
for module in sys.argv[1:]:
    sys.argv = [module, "--help"]
    with contextlib.suppress(SystemExit):
        runpy.run_module(f"inti_jax.{module}", run_name="__main__", alter_sys=True)
"""
    process = subprocess.run([sys.executable, "-c", script, *modules], capture_output=True, text=True)
    found = [line.split()[:4] for line in process.stdout.splitlines() if line.startswith("usage: ")]
    assert found == [["usage:", "python", "-m", f"inti_jax.{module}"] for module in modules]


def run_program(monkeypatch, capsys, *arguments):
    """Run `inti-jax` and return its exit status and what it printed."""
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/inti-jax", *arguments])
    try:
        program.main()
    except SystemExit as stop:
        return stop.code, capsys.readouterr()
    return 0, capsys.readouterr()


@pytest.mark.parametrize("name", program.COMMANDS)
def test_inti_jax_runs_each_command_under_its_name(name, monkeypatch, capsys):
    status, printed = run_program(monkeypatch, capsys, name, "--help")
    assert status == 0 and printed.out.startswith(f"usage: inti-jax {name} ")
    assert "python -m" not in printed.out


def test_inti_jax_has_every_command():
    package = Path(program.__file__).parent
    files = (path for path in package.rglob("*.py") if "    run_command(main)\n" in path.read_text())
    modules = {".".join(path.relative_to(package).with_suffix("").parts) for path in files}
    assert modules == {module for module, _ in program.COMMANDS.values()}


def test_inti_jax_lists_the_commands(monkeypatch, capsys):
    status, printed = run_program(monkeypatch, capsys, "--help")
    assert status == 0 and all(f"\n  {name} " in printed.out for name in program.COMMANDS)
    alone, printed_alone = run_program(monkeypatch, capsys)
    assert (alone, printed_alone.out, printed_alone.err) == (2, "", printed.out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plam"], "error: unknown command `plam`; did you mean `plan`?\n"),
        (["x"], "error: unknown command `x`; it is one of train, prepare, "),
        (
            ["plan", "--config", "k400_vit_b61"],
            "there is no such file; did you mean the recipe `k400_vit_b16`",
        ),
        (["train", "--config", "configs/x/quickstart.py:seed=1", "--workdir", "w"], "recipe `quickstart`?\n"),
        (["plan", "--config", "z"], "there is no such file, and the recipes are ablation, egogestar, hmdb51"),
    ],
)
def test_a_wrong_name_is_one_line_with_the_nearest(arguments, message, monkeypatch, capsys):
    status, printed = run_program(monkeypatch, capsys, *arguments)
    assert status == 2 and message in printed.err and printed.err.count("\n") == 1


def test_inti_jax_starts_without_jax():
    command = [sys.executable, "-X", "importtime", "-m", "inti_jax", "--help"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.stdout.startswith("usage: python -m inti_jax COMMAND")
    imported = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}
    assert "inti_jax.errors" in imported and not imported & {"jax", "numpy", "pydantic", "inti_jax.cli"}


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
        (["--config", CONFIG, "--mode", "eval"], 2, "give the directory of a run"),
        (["--config", CONFIG, "--config.data.data_dir=gcs://b/data"], 2, "URL of an unknown kind"),
        (["--config", CONFIG, "--profile", "10:15"], 2, "write it as steps=FIRST:LAST"),
        (["--config", CONFIG, "--weights", "raw"], 2, "--weights needs --mode eval"),
        (["--config", CONFIG, "--workers", "3"], 2, "unknown argument: --workers"),
    ],
)
def test_a_mistake_is_one_clear_line(arguments, status, message, tmp_path):
    check_mistake(call("main", *arguments, "--workdir", tmp_path), status, message, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--config.train.steps=many"], 2, "`train.steps` is 'many': it should be"),  # before JAX is imported
        (["--config.mesh.data=16"], 2, "`mesh` is data=16"),  # once JAX has started
    ],
)
def test_a_process_says_no_more_than_that_line(arguments, status, message, tmp_path):
    process = start("main", "--config", CONFIG, *arguments, "--workdir", tmp_path)
    check_mistake(process, status, message, tmp_path)


def check_mistake(process, status, message, workdir):
    *usage, line = process.stderr.strip().splitlines()
    assert process.returncode == status
    assert message in line and "Traceback" not in process.stderr
    assert not usage or usage[0].startswith("usage:")
    assert list(workdir.iterdir()) == []


def test_a_workdir_that_is_a_file_is_one_clear_line(tmp_path):
    (tmp_path / "run").write_text("")
    process = call("main", "--config", CONFIG, "--mode", "eval", "--workdir", tmp_path / "run")
    assert process.returncode in (1, 2)
    assert str(tmp_path / "run") in process.stderr and "Traceback" not in process.stderr


def test_a_workdir_at_a_url_of_another_kind_is_refused(tmp_path):
    process = call("main", "--config", CONFIG, "--workdir", "abfs://bucket/run")
    assert process.returncode == 2
    assert "error: abfs://bucket/run is a URL of an unknown kind" in process.stderr


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
