"""Weights as training code leaves them, wrapped and with other things beside, are those of the model."""

import argparse

import numpy as np
import pytest
import torch
from torch import nn

from inti_jax.pretrained.clip_file import ClipFile
from tests.commands import convert
from tests.pretrained import checkpoints

OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2, 2)}}, "param_groups": [{"lr": 1e-3}]}


@pytest.fixture(scope="module")
def weights():
    return checkpoints.openai_state_dict(checkpoints.huggingface_model())


@pytest.fixture(scope="module")
def expected(weights, tmp_path_factory):
    """The hash of what the bare state dict is converted to."""
    directory = tmp_path_factory.mktemp("bare")
    torch.save(weights, directory / "m.pt")
    assert convert(directory / "m.pt", "--out", directory / "f.safetensors", "--activation", "gelu") == 0
    return ClipFile(directory / "f.safetensors").hash


def put_before(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


def average(weights):
    return {name: value + 1 for name, value in weights.items()}


def compiled_part(weights):
    return {name.replace("visual.", "visual._orig_mod."): value for name, value in weights.items()}


WRAPPED = {
    "torch.compile": (lambda w: put_before("_orig_mod.", w), "nothing"),
    "torch.compile in DataParallel": (lambda w: put_before("module._orig_mod.", w), "nothing"),
    "a part compiled": (compiled_part, "nothing"),
    "model": (
        lambda w: {"model": w, "optimizer": OPTIMIZER, "epoch": 3, "best": np.float64(0.5)},
        "best, epoch, optimizer",
    ),
    "model_state_dict": (
        lambda w: {"model_state_dict": w, "args": argparse.Namespace(lr=1e-3), "ema": average(w)},
        "args, ema",
    ),
    "Lightning": (
        lambda w: {
            "state_dict": {**put_before("model.", w), "loss.weight": torch.ones(2)},
            "pytorch-lightning_version": "2.5",
            "hyper_parameters": {"lr": np.float32(1e-3)},
        },
        "hyper_parameters, pytorch-lightning_version, state_dict.loss.weight",
    ),
    "another name": (lambda w: put_before("clip_model.", w), "nothing"),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrapped_weights_are_those_within(weights, expected, tmp_path, capsys, kind):
    wrap, dropped = WRAPPED[kind]
    torch.save(wrap(weights), tmp_path / "m.pt")
    assert convert(tmp_path / "m.pt", "--out", tmp_path / "f.safetensors", "--activation", "gelu") == 0
    assert ClipFile(tmp_path / "f.safetensors").hash == expected
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("dropped"))
    assert line == f"dropped     {dropped}"


class Visual(nn.Module):
    """A module whose parameters have the names of an image tower, and one of a classifier on it."""

    def __init__(self, tower):
        super().__init__()
        self.backbone = nn.Module()
        for name, value in tower.items():
            *path, leaf = name.split(".")
            module = self.backbone
            for part in path:
                if part not in dict(module.named_children()):
                    module.add_module(part, nn.Module())
                module = dict(module.named_children())[part]
            module.register_parameter(leaf, nn.Parameter(value))
        self.head = nn.Linear(2, 2)


@pytest.mark.parametrize("whole", [False, True])
def test_a_tower_under_backbone(weights, tmp_path, whole):
    """As a state dict with the classifier beside it, or the pickled module itself."""
    tower = {name: value for name, value in weights.items() if name.startswith("visual.")}
    torch.save(tower, tmp_path / "tower.pt")
    given = ("--activation", "gelu")
    assert convert(tmp_path / "tower.pt", "--out", tmp_path / "tower.safetensors", *given) == 0
    module = Visual({name.removeprefix("visual."): value for name, value in tower.items()})
    torch.save(module if whole else module.state_dict(), tmp_path / "m.pt")
    assert convert(tmp_path / "m.pt", "--out", tmp_path / "f.safetensors", *given) == 0
    assert ClipFile(tmp_path / "f.safetensors").hash == ClipFile(tmp_path / "tower.safetensors").hash
    # And against the other implementation, which has to find the weights as well.
    assert convert("--verify", tmp_path / "f.safetensors", "--against", tmp_path / "m.pt") == 0
