"""`--verify` finds no difference where there is none, and the stage where one begins."""

import sys

import pytest
import safetensors.numpy
import torch

from inti_jax.pretrained import verify
from inti_jax.pretrained.clip_file import ClipFile, write
from inti_jax.pretrained.lazy_array import held
from tests.commands import convert
from tests.pretrained import checkpoints


@pytest.fixture(scope="module")
def model():
    return checkpoints.huggingface_model(layers=3, resolution=64)


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    """The model in both namings, and ours made of it."""
    directory = tmp_path_factory.mktemp("verify")
    checkpoints.write_huggingface(directory / "huggingface", model)
    torch.save(checkpoints.openai_state_dict(model), directory / "openai")
    assert convert(directory / "huggingface", "--out", directory / "ours.safetensors") == 0
    return directory


@pytest.mark.parametrize("naming", ["huggingface", "openai"])
def test_every_stage_agrees(directory, naming, capfd):
    assert convert("--verify", directory / "ours.safetensors", "--against", directory / naming) == 0
    lines = capfd.readouterr().out.splitlines()[1:]
    stages = [" ".join(line.split()[:-2]) for line in lines]
    blocks = [f"block {i}" for i in (1, 2, 3)]
    expected = [f"{t} {s}" for t in ("image", "text") for s in ("embedding", *blocks, "feature")]
    assert stages == expected
    assert all(float(line.split()[-1]) < 1e-5 for line in lines)


@pytest.mark.parametrize("naming", ["huggingface", "openai"])
@pytest.mark.parametrize(
    ("changed", "stage"),
    [
        ("tower.patch_embed.kernel", "image embedding"),
        ("tower.blocks.1.attn.qkv.bias", "image block 2"),
        ("tower.ln_post.bias", "image feature"),
        ("text.positional_embedding", "text embedding"),
        ("text.blocks.2.mlp.proj.kernel", "text block 3"),
        ("text.projection.kernel", "text feature"),
    ],
)
def test_difference_is_localised(directory, tmp_path, naming, changed, stage, capfd):
    file = ClipFile(directory / "ours.safetensors")
    wrong = held(1.1 * file.read(changed))
    write(tmp_path / "f.safetensors", {**file, changed: wrong}, file.description)
    assert convert("--verify", tmp_path / "f.safetensors", "--against", directory / naming) == 1
    assert f"first at stage {stage}: do not use it" in capfd.readouterr().err


def test_image_tower_alone(model, tmp_path):
    weights = checkpoints.openai_state_dict(model)
    tower = {name: value for name, value in weights.items() if name.startswith("visual.")}
    torch.save(tower, tmp_path / "m.pt")
    assert convert(tmp_path / "m.pt", "--out", tmp_path / "f.safetensors", "--activation", "quick_gelu") == 0
    found = verify.compare(tmp_path / "f.safetensors", tmp_path / "m.pt")
    assert len(found) == 5 and all(difference.relative < 1e-5 for difference in found)


def test_changed_bytes_are_found_by_the_hash(directory, tmp_path, capfd):
    file = ClipFile(directory / "ours.safetensors")
    arrays = {name: array.read() for name, array in file.items()}
    arrays["tower.ln_post.bias"] = arrays["tower.ln_post.bias"] + 1
    handle = safetensors.safe_open(directory / "ours.safetensors", "numpy")
    safetensors.numpy.save_file(arrays, tmp_path / "f.safetensors", handle.metadata())
    assert convert("--verify", tmp_path / "f.safetensors", "--against", directory / "openai") == 1
    assert "hash" in capfd.readouterr().err


def test_source_of_another_shape(directory, tmp_path, capfd):
    other = checkpoints.huggingface_model(layers=2, resolution=64)
    torch.save(checkpoints.openai_state_dict(other), tmp_path / "m.pt")
    assert convert("--verify", directory / "ours.safetensors", "--against", tmp_path / "m.pt") == 1
    assert len(capfd.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_what_it_is_verified_with(directory, monkeypatch, missing, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "inti_jax.pretrained.reference", raising=False)
    monkeypatch.delattr("inti_jax.pretrained.reference", raising=False)
    assert convert("--verify", directory / "ours.safetensors", "--against", directory / "huggingface") == 1
    assert capsys.readouterr().err == (
        'error: verification needs torch and transformers: pip install "inti_jax[convert]"\n'
    )


def test_a_directory_is_not_verified(directory, capsys):
    assert convert("--verify", directory, "--against", directory / "openai") == 1
    assert f"{directory} is a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [("--activation", "gelu"), ("--head_size", "0"), ("--vocab", "vocab.json"), ("--to", "openai")]
)
def test_options_that_verify_does_not_take(directory, option, capsys):
    files = ("--verify", directory / "ours.safetensors", "--against", directory / "openai")
    assert convert(*files, *option) == 2
    assert "only --against SRC" in capsys.readouterr().err
