"""Run the examples in the docstrings of the public names, and hold what the package says of itself."""

import dataclasses
import doctest
import re
import tomllib
from pathlib import Path

import pytest

import inti_jax
from inti_jax.config.backbones import BACKBONES
from tests.commands import convert
from tests.pretrained import checkpoints
from tests.pretrained.weights import write_tiny

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def files(trained_run, tmp_path_factory):
    """A directory with what the examples name, much smaller."""
    directory = tmp_path_factory.mktemp("examples")
    (directory / "runs").mkdir()
    (directory / "runs" / "mine").symlink_to(trained_run)
    source = checkpoints.write_huggingface(directory / "hf", checkpoints.huggingface_model(resolution=224))
    assert convert(source, "--out", directory / "clip.safetensors") == 0
    tower = dataclasses.replace(BACKBONES["dinov2_vit_s14"], layers=1, resolution=224)
    write_tiny(directory / "dinov2.safetensors", image=tower)
    return directory


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", sorted(inti_jax.__all__))
def test_the_example_of_each_public_name_runs_as_written(name, files, monkeypatch):
    monkeypatch.chdir(files)
    function = getattr(inti_jax, name)
    documented = docstring(function)
    examples = doctest.DocTestParser().get_doctest(documented, {}, name, None, None)
    assert examples.examples
    said = []
    result = doctest.DocTestRunner(verbose=False).run(examples, out=said.append)
    assert result.failed == 0, "".join(said)


def docstring(function):
    # Imported by tests that call commands, a command's module may be in the function's place.
    return getattr(function, "_call", function).__doc__


def test_the_package_says_what_it_has():
    assert set(inti_jax.__all__) <= set(dir(inti_jax))
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        inti_jax.train  # noqa: B018


def test_one_version_everywhere():
    """pyproject.toml reads the package's; what cannot read it says the same."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "inti_jax.__version__"}
    assert project["project"]["dynamic"] == ["version"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (\S+)$", citation, re.MULTILINE)[1] == inti_jax.__version__
    released = re.findall(r"^## \[?(\d\S*?)\]?(?: |$)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert not released or released[0] == inti_jax.__version__
