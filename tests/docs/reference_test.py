"""Check the generated pages: every key of a config and every command is there, with what it means."""

import pytest

from inti_jax import config
from inti_jax.__main__ import COMMANDS
from tests.docs.code_test import keys
from tests.docs.pages import script


def test_every_key_has_a_type_a_default_and_a_meaning():
    pages = script("reference")
    found = {
        key.path: key
        for path, section in pages.sections("", config.Config)
        for key in pages.keys(path, section)
    }
    sections = {path for path, _ in pages.sections("", config.Config)}
    assert set(found) == set(keys()) - sections
    for key in found.values():
        assert len(key.meaning) > 10 and key.type and key.default
    assert found["train.learning_rate"].type == "float, above 0"
    assert found["data.resolution"].type == "int, above 0; or (int, above 0; int, above 0)"
    assert found["model.aim.scale"].default == "0.5"
    assert found["data.threads"].meaning.startswith("Decoding threads of each worker process")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_help(name):
    assert f"usage: inti-jax {name}" in script("reference").help_of(name)
