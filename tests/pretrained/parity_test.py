"""Converted weights compute what transformers' CLIP computes, whatever form they came in."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.torch
import torch

from inti_jax.pretrained.api import load_clip
from inti_jax.pretrained.clip_file import ClipFile
from tests.commands import convert
from tests.pretrained import checkpoints

TOLERANCE = 2e-5  # of the feature's norm


def _gap(ours, theirs):
    return (np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)).max()


def _check(path, model):
    images, texts = checkpoints.inputs(model)
    clip = load_clip(path)
    image, text, logits = checkpoints.features(model, images, texts)
    assert _gap(clip.encode_image(images), image) <= TOLERANCE
    assert _gap(clip.encode_text(texts), text) <= TOLERANCE
    np.testing.assert_allclose(checkpoints.logits(clip, images, clip.encode_text(texts)), logits, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "activation"), [("b32", "quick_gelu"), ("b16", "gelu"), ("l14", "quick_gelu")]
)
def test_huggingface_directory_and_openai_state_dict(tmp_path, size, activation):
    model = checkpoints.huggingface_model(size, activation=activation, layers=1)
    source = checkpoints.write_huggingface(tmp_path / "hf", model)
    assert convert(source, "--out", tmp_path / "hf.safetensors") == 0
    _check(tmp_path / "hf.safetensors", model)

    torch.save(checkpoints.openai_state_dict(model), tmp_path / "openai.pt")
    out = tmp_path / "openai.safetensors"
    given = ("--activation", activation, "--vocab", source)
    assert convert(tmp_path / "openai.pt", "--out", out, *given) == 0
    # The same weights from either naming, and so the same features; but texts as either library has them.
    ours, theirs = ClipFile(out), ClipFile(tmp_path / "hf.safetensors")
    assert (ours.description.cleaning, theirs.description.cleaning) == ("openai", "huggingface")
    assert dataclasses.replace(ours.description, cleaning="huggingface") == theirs.description
    assert ours.hash == theirs.hash


@pytest.mark.parametrize(("size", "mlp", "text_mlp"), [("h14", None, None), ("small", 600, 200)])
def test_sizes_of_open_clip(tmp_path, size, mlp, text_mlp):
    """Heads of another width than 64, and g/14's and bigG/14's MLPs, which are not four times as wide."""
    model = checkpoints.huggingface_model(size, activation="gelu", layers=1, mlp=mlp, text_mlp=text_mlp)
    source = checkpoints.write_huggingface(tmp_path / "hf", model)
    torch.save(checkpoints.openai_state_dict(model), tmp_path / "open_clip.pt")
    given = ("--activation", "gelu", "--vocab", source)
    assert convert(tmp_path / "open_clip.pt", "--out", tmp_path / "f.safetensors", *given) == 0
    assert convert(source, "--out", tmp_path / "hf.safetensors") == 0
    assert ClipFile(tmp_path / "f.safetensors").hash == ClipFile(tmp_path / "hf.safetensors").hash
    architecture = ClipFile(tmp_path / "hf.safetensors").description.architecture
    assert (architecture.image.mlp, architecture.text.mlp) == (mlp, text_mlp)
    _check(tmp_path / "f.safetensors", model)
    for against in (source, tmp_path / "open_clip.pt"):
        assert convert("--verify", tmp_path / "f.safetensors", "--against", against) == 0
    assert convert(tmp_path / "f.safetensors", "--to", "huggingface", "--out", tmp_path / "back") == 0
    back = type(model).from_pretrained(tmp_path / "back").config
    for tower in ("vision_config", "text_config"):
        inner = getattr(model.config, tower).intermediate_size
        assert getattr(back, tower).intermediate_size == inner


def test_full_depth(tmp_path):
    model = checkpoints.huggingface_model(layers=12)
    assert (
        convert(checkpoints.write_huggingface(tmp_path / "hf", model), "--out", tmp_path / "f.safetensors")
        == 0
    )
    _check(tmp_path / "f.safetensors", model)


def test_torchscript_archive_in_half_precision(tmp_path):
    model = checkpoints.huggingface_model(layers=3)
    with torch.no_grad():  # what half precision leaves of the weights
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    checkpoints.write_torchscript(tmp_path / "m.pt", checkpoints.openai_state_dict(model), resolution=224)
    checkpoints.write_huggingface(tmp_path / "hf", model)
    # OpenAI's archives are known to have QuickGELU.
    out = tmp_path / "f.safetensors"
    assert convert(tmp_path / "m.pt", "--out", out, "--vocab", tmp_path / "hf" / "vocab.json") == 0
    _check(out, model)


@pytest.mark.parametrize("form", ["shards", "bin"])
def test_other_forms_of_a_huggingface_directory(tmp_path, form):
    model = checkpoints.huggingface_model()
    for name in ("safetensors", form):
        source = checkpoints.write_huggingface(tmp_path / name, model, form=name)
        assert convert(source, "--out", tmp_path / f"{name}.safetensors") == 0
    assert (tmp_path / f"{form}.safetensors").read_bytes() == (
        tmp_path / "safetensors.safetensors"
    ).read_bytes()


def test_open_clip_directory_tells_activation_and_pixel_statistics(tmp_path):
    model = checkpoints.huggingface_model(activation="gelu")
    weights = checkpoints.openai_state_dict(model)
    safetensors.torch.save_file(weights, tmp_path / "open_clip_model.safetensors")
    config = {
        "model_cfg": {"embed_dim": 32, "vision_cfg": {"width": 128}, "text_cfg": {"heads": 1}},
        "preprocess_cfg": {"mean": [0.5, 0.25, 0.125], "std": [0.5, 0.5, 0.25]},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert convert(tmp_path, "--out", tmp_path / "f.safetensors") == 0
    description = load_clip(tmp_path / "f.safetensors").description
    assert description.architecture.numerics.activation == "gelu"
    assert (description.mean, description.std) == ((0.5, 0.25, 0.125), (0.5, 0.5, 0.25))


@pytest.mark.parametrize("form", ["training checkpoint", "legacy", "tower"])
def test_other_forms_of_a_state_dict(tmp_path, form, capsys):
    model = checkpoints.huggingface_model()
    weights = checkpoints.openai_state_dict(model)
    if form == "training checkpoint":  # of open_clip, with its optimizer and DataParallel's prefix
        wrapped = {f"module.{name}": value for name, value in weights.items()}
        optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
        torch.save({"epoch": 1, "state_dict": wrapped, "optimizer": optimizer}, tmp_path / "m.pt")
    elif form == "legacy":
        torch.save(weights, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    else:
        tower = {name.removeprefix("visual."): w for name, w in weights.items() if name.startswith("visual.")}
        torch.save(tower, tmp_path / "m.pt")
    assert convert(tmp_path / "m.pt", "--out", tmp_path / "f.safetensors", "--activation", "quick_gelu") == 0
    dropped = "epoch, optimizer" if form == "training checkpoint" else "nothing"
    assert f"dropped     {dropped}\n" in capsys.readouterr().out
    images, texts = checkpoints.inputs(model)
    image, _, _ = checkpoints.features(model, images, texts)
    assert _gap(load_clip(tmp_path / "f.safetensors").encode_image(images), image) <= TOLERANCE


def test_what_is_no_weight_is_dropped_and_listed(tmp_path, capfd):
    model = checkpoints.huggingface_model()
    source = checkpoints.write_huggingface(tmp_path / "hf", model)
    assert convert(source, "--out", tmp_path / "f.safetensors") == 0
    weights = safetensors.torch.load_file(source / "model.safetensors")
    key = "vision_model.embeddings.position_ids"  # in older checkpoints
    safetensors.torch.save_file({**weights, key: torch.arange(5)}, source / "model.safetensors")
    capfd.readouterr()
    assert convert(source, "--out", tmp_path / "g.safetensors") == 0
    assert f"dropped     {key}\n" in capfd.readouterr().out
    assert (tmp_path / "f.safetensors").read_bytes() == (tmp_path / "g.safetensors").read_bytes()


def test_settings_travel_with_the_weights(tmp_path):
    model = checkpoints.huggingface_model(activation="gelu", resolution=96)
    for tower in (model.config.vision_config, model.config.text_config):
        tower.layer_norm_eps = 1e-3
    source = checkpoints.write_huggingface(tmp_path / "hf", model)
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (source / "preprocessor_config.json").write_text(json.dumps(statistics))
    assert convert(source, "--out", tmp_path / "f.safetensors") == 0

    reloaded = type(model).from_pretrained(source).eval()
    _check(tmp_path / "f.safetensors", reloaded)
    clip = load_clip(tmp_path / "f.safetensors")
    assert clip.description.architecture.image.resolution == 96
    pixels = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    normalised = (pixels / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.4, 0.5, 0.6])
    assert _gap(clip.encode_image(pixels), clip.encode_image(normalised.astype(np.float32))) <= 1e-5


def test_older_configs_name_another_end_token(tmp_path):
    model = checkpoints.huggingface_model()
    source = checkpoints.write_huggingface(tmp_path / "hf", model)
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (source / "config.json").write_text(json.dumps(config))
    assert convert(source, "--out", tmp_path / "f.safetensors") == 0
    _check(tmp_path / "f.safetensors", type(model).from_pretrained(source).eval())
