"""The way out: what went in comes back, bit for bit, and the others' own loaders take it."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from inti_jax.errors import UserError
from inti_jax.pretrained.clip_file import ClipFile
from inti_jax.runs import export
from tests.commands import convert
from tests.pretrained import checkpoints

pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture(scope="module")
def model():
    return checkpoints.huggingface_model(activation="gelu", layers=3, resolution=64)


@pytest.fixture(scope="module")
def ours(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("ours")
    source = checkpoints.write_huggingface(directory / "hf", model)
    assert convert(source, "--out", directory / "f.safetensors") == 0
    return directory / "f.safetensors"


def _same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_openai_round_trip_is_exact(model, ours, tmp_path, suffix):
    out = tmp_path / f"m.{suffix}"
    assert convert(ours, "--to", "openai", "--out", out) == 0
    read = torch.load(out, weights_only=True) if suffix == "pt" else safetensors.torch.load_file(out)
    _same(read, checkpoints.openai_state_dict(model))

    vocabulary = ours.parent / "hf"
    again = tmp_path / "again.safetensors"
    assert convert(out, "--out", again, "--activation", "gelu", "--vocab", vocabulary) == 0
    # Exact but for one thing: texts are now prepared as OpenAI's library does.
    before, after = ClipFile(ours), ClipFile(again)
    assert after.hash == before.hash
    assert after.description == dataclasses.replace(before.description, cleaning="openai")


def test_huggingface_round_trip_is_exact(model, ours, tmp_path):
    assert convert(ours, "--to", "huggingface", "--out", tmp_path / "hf") == 0
    _same(safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors"), dict(model.state_dict()))
    assert convert(tmp_path / "hf", "--out", tmp_path / "again.safetensors") == 0
    assert (tmp_path / "again.safetensors").read_bytes() == ours.read_bytes()


def test_transformers_loads_what_is_given_back(model, ours, tmp_path):
    assert convert(ours, "--to", "huggingface", "--out", tmp_path / "hf") == 0
    loaded = transformers.CLIPModel.from_pretrained(tmp_path / "hf").eval()
    images, texts = checkpoints.inputs(model)
    for mine, theirs in zip(
        checkpoints.features(loaded, images, texts), checkpoints.features(model, images, texts), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path / "hf")
    assert processor.crop_size["height"] == 64
    ids, merges = checkpoints.vocabulary()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "hf")
    original = transformers.CLIPTokenizer(vocab=ids, merges=[tuple(merge.split()) for merge in merges])
    assert tokenizer(texts)["input_ids"] == original(texts)["input_ids"]


@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.parametrize("naming", ["openai", "huggingface"])
def test_image_tower_alone(model, tmp_path, projected, naming):
    kind = transformers.CLIPVisionModelWithProjection if projected else transformers.CLIPVisionModel
    vision = kind(model.config.vision_config).eval()
    vision.save_pretrained(tmp_path / "source")
    ours = tmp_path / "f.safetensors"
    assert convert(tmp_path / "source", "--out", ours) == 0

    out = tmp_path / ("back" if naming == "huggingface" else "back.safetensors")
    assert convert(ours, "--to", naming, "--out", out) == 0
    again = tmp_path / "again.safetensors"
    options = () if naming == "huggingface" else ("--activation", "gelu")
    assert convert(out, "--out", again, *options) == 0
    assert again.read_bytes() == ours.read_bytes()
    if naming == "huggingface":
        _same(dict(kind.from_pretrained(out).state_dict()), dict(vision.state_dict()))


def test_parameters_that_clip_has_not(ours, tmp_path):
    file = ClipFile(ours)
    arrays = {**file, "compressors.0.down.kernel": file["projection.kernel"]}
    with pytest.raises(UserError, match=r"compressors\.0\.down\.kernel"):
        export.export(arrays, file.description, "openai", tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_given_back(ours, tmp_path, capfd):
    (tmp_path / "there").mkdir()
    assert convert(ours, "--to", "huggingface", "--out", tmp_path / "there") == 2
    assert convert(ours, "--to", "openai", "--out", tmp_path / "m.bin") == 2
    assert convert(tmp_path / "absent", "--to", "openai", "--out", tmp_path / "m.pt") == 1
    assert (
        convert(ours.parent / "hf" / "model.safetensors", "--to", "openai", "--out", tmp_path / "m.pt") == 1
    )
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert all(line.startswith("error: ") for line in capfd.readouterr().err.strip().splitlines())


def test_config_written_is_the_one_read(ours, tmp_path):
    assert convert(ours, "--to", "huggingface", "--out", tmp_path / "hf") == 0
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    original = json.loads((ours.parent / "hf" / "config.json").read_text())
    for tower in ("vision_config", "text_config"):
        for key in written[tower]:
            assert written[tower][key] == original[tower][key], (tower, key)
