"""The source distribution and its wheel hold all that the commands need: they run, installed elsewhere."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import inti_jax
from inti_jax import config
from tests.data import clips
from tests.processes import QUICK_TO_COMPILE

ROOT = Path(__file__).parents[1]
# What a build reads beside the packages; MANIFEST.in adds the last two to the source distribution.
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff")


PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
OFFLINE = ("--no-index", "--no-deps")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution, unpacked, the wheel of that, and the wheel of the checkout."""
    directory = tmp_path_factory.mktemp("built")
    tree = directory / "tree"  # a copy, because setuptools writes beside what it builds
    for name in ("inti_jax", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    program = "from setuptools import build_meta; build_meta.build_sdist('..')"
    run(sys.executable, "-c", program, cwd=tree)
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(directory, filter="data")
    source = directory / archive.name.removesuffix(".tar.gz")
    wheels = []
    for place in (source, tree):
        to = directory / f"wheel of {place.name}"
        run(*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", to, place)
        wheels += to.glob("*.whl")
    shutil.rmtree(tree)
    return source, *wheels


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The directory of the programs of an environment that has the wheel, and the others' packages."""
    environment = tmp_path_factory.mktemp("environment")
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    run(*PIP, "--python", python, "install", *OFFLINE, "--no-compile", built[1])
    (packages,) = environment.glob("lib/*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return environment / "bin"


def run(*command, cwd=None):
    environment = os.environ | {"XLA_FLAGS": QUICK_TO_COMPILE}  # one device
    environment.pop("PYTHONPATH", None)  # it may lead to the checkout
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_source_distribution_holds_what_a_wheel_is_built_from(built):
    source, *wheels = built
    assert set(FILES) <= {path.name for path in source.iterdir()}
    members = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as opened:
            members.append({each.filename: each.CRC for each in opened.infolist()})
    from_source, from_tree = members
    assert from_source == from_tree
    assert {"inti_jax/py.typed", "inti_jax/configs/quickstart.py"} <= set(from_source)
    for path in (ROOT / "inti_jax").rglob("*.py"):
        assert str(path.relative_to(ROOT)) in from_source


def test_every_recipe_is_found_by_name(installed, tmp_path):
    program = """
import inti_jax
from inti_jax import config
for name in config.recipes():
    config.load_config(name)
    print(name)
print(inti_jax.__file__)
"""
    *names, file = run(installed / "python", "-c", program, cwd=tmp_path).splitlines()
    assert names == list(config.recipes()) and "k400_vit_b16" in names
    assert Path(file).is_relative_to(installed.parent)
    assert Path(file).with_name("py.typed").exists()
    assert (Path(file).parent / "pages" / "templates" / "report.html").exists()


def test_plan(installed, tmp_path):
    spec = "k400_vit_b16:method=aim"
    plan = json.loads(run(installed / "inti-jax", "plan", "--config", spec, "--json", cwd=tmp_path))
    assert [block["frames"] for block in plan["blocks"]] == [8] * 3 + [4] * 9


def test_pages_are_rendered(installed, tmp_path):
    program = "from inti_jax import pages; print(pages.render('base.html', title='A & b'))"
    page = run(installed / "python", "-c", program, cwd=tmp_path)
    assert "<h1>A &amp; b</h1>" in page and "color-scheme: light dark" in page


def test_the_version_is_the_packages(installed, tmp_path):
    assert run(installed / "inti-jax", "--version", cwd=tmp_path) == f"inti_jax {inti_jax.__version__}\n"


def test_prepare_then_doctor(installed, tmp_path):
    for name in ("left/0.mp4", "left/1.mp4", "right/0.mp4", "right/1.mp4"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(clips.encode(clips.moving_square(8, 32, 32)))
    program = installed / "inti-jax"
    source = ("--source", "videos", "--val_share", "0.5")
    said = run(program, "prepare", "folder", *source, "--data_dir", "data", cwd=tmp_path)
    assert "folder 1.0.0 in data/folder/1.0.0" in said and "2 labels" in said
    # A small program, which compiles in seconds: few frames, and one block in a loop.
    keys = {
        "data.name": "folder",
        "data.num_frames": 2,
        "train.global_batch": 2,
        "eval.batch": 2,
        "model.scan": "on",
    }
    overrides = (f"--config.{key}={value}" for key, value in keys.items())
    spec = "quickstart:compression=none"
    found = json.loads(run(program, "doctor", "--config", spec, *overrides, "--json", cwd=tmp_path))
    assert found["ok"] and {layer["status"] for layer in found["layers"]} == {"ok"}
