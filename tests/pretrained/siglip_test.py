"""Converted SigLIP computes what transformers' SigLIP computes, and goes back bit for bit."""

import json

import jax
import numpy as np
import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers

import inti_jax
from inti_jax.config.backbones import BACKBONES, HALF, SIGLIP
from inti_jax.config.resolution import height_width
from inti_jax.models import pieces
from inti_jax.pretrained.clip_file import ClipFile
from tests.commands import convert
from tests.pretrained.towers import gap, images, one_frame_model, pooled

VISION = {
    "hidden_size": 96,
    "intermediate_size": 260,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 58,  # two pixels more than its patches cover, as 384 is for patches of 14
    "patch_size": 14,
}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 150,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 16,
    "projection_size": 96,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
TEXTS = ["a photo of the dog", "The  dog, and 12 PHOTOS of it: " + 20 * "dog "]


def randomize(model):
    """Every weight and bias random, none of them at its neutral value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(0.2 * noise + (0 if name.endswith("bias") else 1))
            elif not name.startswith("logit"):
                matrix = parameter.ndim in (2, 4) and "embedding.w" not in name
                fan_in = parameter[0].numel() if matrix else 25
                parameter.copy_(noise * fan_in**-0.5)
    return model.eval()


def make(kind):
    if kind == "vision":
        return randomize(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION)))
    config = transformers.SiglipConfig(vision_config=VISION, text_config=TEXT)
    model = randomize(transformers.SiglipModel(config))
    with torch.no_grad():  # as a trained one has them: the scale is beyond CLIP's range
        model.logit_scale.fill_(4.76)
        model.logit_bias.fill_(-16.5)
    return model


def unigrams():
    """A tokenizer as SigLIP's: pieces of SentencePiece's with their scores."""
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = ["▁a", "▁photo", "▁of", "▁the", "▁dog", "▁and", "▁12", "▁it", "▁", *letters]
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((word, -len(words) / 7) for word in words)]
    made = tokenizers.Tokenizer(models.Unigram(scores, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return made


def byte_pairs():
    """A tokenizer as Gemma's: byte pairs, with spaces written as a sign."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz", *"0123456789", *",:.!"]
    merges = [("d", "o"), ("do", "g"), ("▁", "dog"), ("o", "f"), ("t", "h"), ("th", "e")]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *letters, *("".join(pair) for pair in merges)]
    made = tokenizers.Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>", fuse_unk=True)
    )
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])
    return made


@pytest.fixture(scope="module", params=["whole", "vision"])
def case(request, tmp_path_factory):
    """A model, its directory and the converted file."""
    directory = tmp_path_factory.mktemp("siglip")
    model = make(request.param)
    model.save_pretrained(directory / "hf")
    if request.param == "whole":
        byte_pairs().save(str(directory / "hf" / "tokenizer.json"))
    assert convert(directory / "hf", "--out", directory / "f.safetensors") == 0
    return model, directory / "hf", directory / "f.safetensors"


def tower_of(model):
    """Give the image tower of a SigLIP, which may be one itself."""
    return getattr(model, "vision_model", model)


def test_features_are_those_of_transformers(case):
    model, _, file = case
    tower = inti_jax.load_tower(file)
    assert gap(tower.features(images(58)), pooled(tower_of(model), images(58))) <= 2e-5
    assert (tower.description.mean, tower.description.std) == (HALF, HALF)
    assert tower.description.architecture.numerics == SIGLIP


def test_stages_are_verified_and_a_changed_weight_is_found(case, tmp_path, capsys):
    _, directory, file = case
    assert convert("--verify", file, "--against", directory) == 0
    assert "image block 2" in capsys.readouterr().out
    other = tmp_path / "other"
    weights = safetensors.torch.load_file(directory / "model.safetensors")
    name = next(name for name in weights if name.endswith("head.attention.in_proj_weight"))
    weights[name][:96] *= 1.1  # the query
    other.mkdir()
    safetensors.torch.save_file(weights, other / "model.safetensors")
    (other / "config.json").write_text((directory / "config.json").read_text())
    assert convert("--verify", file, "--against", other) == 1
    assert "first at stage image feature" in capsys.readouterr().err


def test_the_way_back_is_bit_exact(case, tmp_path):
    model, directory, file = case
    assert convert(file, "--to", "huggingface", "--out", tmp_path / "back") == 0
    before = safetensors.torch.load_file(directory / "model.safetensors")
    after = safetensors.torch.load_file(tmp_path / "back" / "model.safetensors")
    prefix = "" if after.keys() == before.keys() else "vision_model."
    assert after.keys() == {prefix + name for name in before}
    for name, value in before.items():
        assert torch.equal(value, after[prefix + name]), name
    again = type(model).from_pretrained(tmp_path / "back").eval()
    np.testing.assert_array_equal(pooled(tower_of(again), images(58)), pooled(tower_of(model), images(58)))
    if (directory / "tokenizer.json").exists():
        library = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
        assert library("the dog").input_ids == byte_pairs().encode("the dog").ids


@pytest.mark.parametrize("case", ["whole"], indirect=True)
def test_texts_and_logits_are_those_of_transformers(case):
    model, directory, file = case
    clip = inti_jax.load_clip(file)
    library = transformers.Siglip2Tokenizer.from_pretrained(directory, padding_side="right")
    tokens = library(TEXTS, add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([[*row[:15], 1, *[0] * (15 - len(row))] for row in tokens])
    with torch.no_grad():
        expected = model.text_model(input_ids=tokens).pooler_output.numpy()
        pixels = torch.from_numpy(images(58).transpose(0, 3, 1, 2).copy())
        logits = model(input_ids=tokens, pixel_values=pixels).logits_per_image.numpy()
    found = clip.encode_text(TEXTS)
    assert gap(found, expected) <= 2e-5
    features = (clip.encode_image(images(58)), found)
    image, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in features)
    np.testing.assert_allclose(clip.logit_scale * image @ text.T + clip.logit_bias, logits, atol=1e-3)


def test_siglips_texts_lose_capitals_and_punctuation(tmp_path):
    unigrams().save(str(tmp_path / "tokenizer.json"))
    tokenizer = pieces.PieceTokenizer(pieces.read_pieces(tmp_path, 300), 16)
    cleaned = {
        "a photo of the dog": "a photo of the dog",
        " <A>  dog's\tphoto — it! ": "a dogs photo — it",
        "THE (dog), " * 20: " ".join(20 * ["the dog"]),
    }
    for row, text in zip(tokenizer(cleaned), cleaned.values(), strict=True):
        expected = [*unigrams().encode(text).ids[:15], 1]
        assert row.tolist() == [*expected, *[1] * (16 - len(expected))]


@pytest.mark.parametrize("case", ["whole"], indirect=True)
@pytest.mark.parametrize("resolution", [56, 84, (84, 42)])
def test_a_video_model_starts_from_class_names(case, monkeypatch, resolution):
    """One frame of a video gives SigLIP's zero-shot probabilities, also where positions are resampled."""
    model, _, file = case
    monkeypatch.setitem(BACKBONES, "tiny", ClipFile(file).description.architecture.image)
    built = one_frame_model(
        file,
        "tiny",
        resolution,
        classes=3,
        model__head__init="text",
        model__head__templates=("a photo of {}",),
    )
    pixels = np.random.default_rng(2).integers(0, 256, (2, *height_width(resolution), 3), np.uint8)
    image = pooled(
        tower_of(model), (pixels / 127.5 - 1).astype(np.float32), interpolate_pos_encoding=resolution != 56
    )
    assert gap(np.asarray(jax.jit(lambda video: built.features(video))(pixels[:, None])), image) <= 2e-5
    clip = inti_jax.load_clip(file)
    text = clip.encode_text([f"a photo of class {k}" for k in range(3)])
    image, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    found = np.asarray(jax.jit(lambda video: built(video))(pixels[:, None]))
    np.testing.assert_allclose(found, clip.logit_scale * image @ text.T, atol=2e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "siglip2"}, "SigLIP 2 for images of any shape (NaFlex), which is not supported"),
        ({"model_type": "vit"}, "is of model type 'vit', not siglip or siglip_vision_model"),
        ({"num_attention_heads": 5}, "no multiple of 5 heads"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not gelu_pytorch_tanh"),
        ({"image_size": 224}, "image_size 224 and patches of 14 do not make the 16 positions"),
    ],
)
@pytest.mark.parametrize("case", ["vision"], indirect=True)
def test_other_settings_are_refused(case, tmp_path, changes, message, capsys):
    _, directory, _ = case
    config = json.loads((directory / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes())
    assert convert(tmp_path, "--out", tmp_path / "f.safetensors") == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("case", ["vision"], indirect=True)
def test_a_tower_without_its_pooling_is_refused(case, tmp_path, capsys):
    _, directory, _ = case
    weights = safetensors.torch.load_file(directory / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "head." not in name}
    safetensors.torch.save_file(kept, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    assert convert(tmp_path, "--out", tmp_path / "f.safetensors") == 1
    assert "a SigLIP without its attention pooling" in capsys.readouterr().err
