"""Converted DINOv2 computes what transformers' models compute, and goes back bit for bit."""

import json

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

import inti_jax
from inti_jax.config.backbones import BACKBONES, DINOV2, DINOV2_WITH_REGISTERS, IMAGENET_MEAN, IMAGENET_STD
from inti_jax.config.resolution import height_width
from inti_jax.pretrained.clip_file import ClipFile
from tests.commands import convert
from tests.pretrained.towers import gap, images, one_frame_model, pooled

KINDS = {
    "plain": (transformers.Dinov2Model, transformers.Dinov2Config, {}),
    "gated": (transformers.Dinov2Model, transformers.Dinov2Config, {"use_swiglu_ffn": True}),
    "registers": (transformers.Dinov2WithRegistersModel, transformers.Dinov2WithRegistersConfig, {}),
}


def make(kind, **sizes):
    """transformers' model with every weight and bias random, none of them at its neutral value."""
    model, config, changes = KINDS[kind]
    sizes = {"hidden_size": 96, "num_attention_heads": 3} | sizes
    config = config(num_hidden_layers=2, image_size=70, patch_size=14, **sizes, **changes)
    model = model(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name or "lambda" in name:
                parameter.copy_(0.2 * noise + (0 if name.endswith("bias") else 1))
            else:
                fan_in = parameter[0].numel() if parameter.ndim in (2, 4) and "token" not in name else 25
                parameter.copy_(noise * fan_in**-0.5)
    return model


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory):
    """A model, its directory and the converted file."""
    directory = tmp_path_factory.mktemp("dinov2")
    model = make(request.param)
    model.save_pretrained(directory / "hf")
    assert convert(directory / "hf", "--out", directory / "f.safetensors") == 0
    return model, directory / "hf", directory / "f.safetensors"


def test_features_are_those_of_transformers(case):
    model, _, file = case
    tower = inti_jax.load_tower(file)
    assert gap(tower.features(images(70)), pooled(model, images(70))) <= 2e-5
    assert (tower.description.mean, tower.description.std) == (IMAGENET_MEAN, IMAGENET_STD)
    expected = DINOV2_WITH_REGISTERS if model.config.model_type.endswith("registers") else DINOV2
    assert tower.description.architecture.numerics == expected


@pytest.mark.parametrize("resolution", [42, (42, 84)])
def test_a_video_model_takes_it_at_another_resolution(case, monkeypatch, resolution):
    """One frame of a video: positions are resampled as transformers does it."""
    model, _, file = case
    monkeypatch.setitem(BACKBONES, "tiny", ClipFile(file).description.architecture.image)
    built = one_frame_model(file, "tiny", resolution)
    pixels = np.random.default_rng(2).integers(0, 256, (2, *height_width(resolution), 3), np.uint8)
    normalized = ((pixels / 255 - IMAGENET_MEAN) / IMAGENET_STD).astype(np.float32)
    found = jax.jit(lambda video: built.features(video))(pixels[:, None])
    assert gap(np.asarray(found), pooled(model, normalized)) <= 2e-5


def test_stages_are_verified_and_a_changed_weight_is_found(case, tmp_path, capsys):
    _, directory, file = case
    assert convert("--verify", file, "--against", directory) == 0
    assert "image block 2" in capsys.readouterr().out
    other = tmp_path / "other"
    weights = safetensors.torch.load_file(directory / "model.safetensors")
    weights["encoder.layer.1.layer_scale2.lambda1"] *= 1.01
    other.mkdir()
    safetensors.torch.save_file(weights, other / "model.safetensors")
    (other / "config.json").write_text((directory / "config.json").read_text())
    assert convert("--verify", file, "--against", other) == 1
    assert "image block 2" in capsys.readouterr().err


def test_the_way_back_is_bit_exact(case, tmp_path):
    model, directory, file = case
    assert convert(file, "--to", "huggingface", "--out", tmp_path / "back") == 0
    before = safetensors.torch.load_file(directory / "model.safetensors")
    after = safetensors.torch.load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() - after.keys() == {"embeddings.mask_token"} and after.keys() <= before.keys()
    for name, value in after.items():
        assert torch.equal(value, before[name]), name
    again = type(model).from_pretrained(tmp_path / "back").eval()
    np.testing.assert_array_equal(pooled(again, images(70)), pooled(model, images(70)))


def metas(weights):
    """The weights of transformers' DINOv2 in Meta's own names."""
    names = {
        "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.": "",
        "encoder.layer.": "blocks.",
        "attention.output.dense.": "attn.proj.",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "weights_in.": "w12.",
        "weights_out.": "w3.",
        "layernorm.": "norm.",
    }
    found = {}
    for name, value in weights.items():
        if ".attention.attention." in name:
            if ".query." not in name:
                continue
            layers = ("query", "key", "value")
            value = torch.cat([weights[name.replace("query", layer)] for layer in layers])
            name = name.replace("attention.attention.query", "attn.qkv")
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        found[name] = value.clone()
    return found


@pytest.mark.parametrize("kind", ["gated", "registers"])
def test_metas_own_file_gives_the_same(tmp_path, capsys, kind):
    """Its heads are known to be 64 wide."""
    make(kind, hidden_size=128, num_attention_heads=2).save_pretrained(tmp_path / "hf")
    pth, out = tmp_path / "m.pth", tmp_path / "f.safetensors"
    assert convert(tmp_path / "hf", "--out", tmp_path / "hf.safetensors") == 0
    weights = metas(safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors"))
    torch.save(weights, pth)
    assert convert(pth, "--out", out) == 0
    found, expected = ClipFile(out), ClipFile(tmp_path / "hf.safetensors")
    assert found.description == expected.description and found.hash == expected.hash
    assert convert("--verify", out, "--against", pth) == 0
    assert convert(pth, "--out", out, "--head_size", "32") == 2
    assert "leave out the arguments for them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "vit"}, "is of model type 'vit', not dinov2 or dinov2_with_registers"),
        ({"num_attention_heads": 5}, "no multiple of 5 heads"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not gelu"),
    ],
)
def test_other_settings_are_refused(case, tmp_path, changes, message, capsys):
    _, directory, _ = case
    config = json.loads((directory / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes())
    assert convert(tmp_path, "--out", tmp_path / "f.safetensors") == 1
    assert message in capsys.readouterr().err
