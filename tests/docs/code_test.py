"""Check the code on the pages: commands have the options that they are given, and Python parses."""

import ast
import functools
import re

import pytest

import inti_jax
from inti_jax import config
from inti_jax.__main__ import COMMANDS
from tests.docs.pages import PAGES, ROOT, blocks, commands, script

MODULES = {module.partition(".")[0]: name for name, (module, _) in COMMANDS.items()}


@functools.cache
def options(command):
    return set(re.findall(r"--[a-z_]+", script("reference").help_of(command)))


def keys(settings=None, path=""):
    for name, value in (settings or config.defaults()).items():
        yield f"{path}{name}"
        if hasattr(value, "items"):
            yield from keys(value, f"{path}{name}.")


def of_package(words):
    """The command's name and its words, where it is one of this package's."""
    if words[:2] == ["python", "-m"] and words[2].startswith("inti_jax."):
        return MODULES[words[2].removeprefix("inti_jax.")], words[3:]
    if words[0] == "inti-jax":
        return words[1], words[2:]
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_have_the_options_keys_and_files_that_are_named(page):
    known = set(keys())
    for words in commands(page):
        if words[0].startswith("./"):
            assert (ROOT / words[0]).exists(), words
        if (found := of_package(words)) is None:
            continue
        name, arguments = found
        for word in arguments:
            if word.startswith("--config."):
                assert word.removeprefix("--config.").partition("=")[0] in known, (name, word)
            elif word.startswith("--"):
                assert word.partition("=")[0] in options(name) | {"--help"}, (name, word)
            elif word.startswith("configs/"):
                assert (ROOT / word.partition(":")[0]).exists(), word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_parses_and_names_what_there_is(page):
    for block in blocks(page):
        if block.kind == "python" and not block.of_file:
            for node in ast.walk(ast.parse(block.code)):
                if (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "inti_jax"
                ):
                    assert hasattr(inti_jax, node.attr) or node.attr in MODULES, node.attr
