"""What cannot be converted is named in one line, runs nothing and leaves no file."""

import json
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from inti_jax.pretrained.clip_file import ClipFile
from tests.commands import convert
from tests.pretrained import checkpoints

QKV = "vision_model.encoder.layers.0.self_attn.q_proj.weight"


class _Hostile:
    """A pickle of this runs a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "hf"
    return checkpoints.write_huggingface(path, checkpoints.huggingface_model())


@pytest.fixture
def copy(source, tmp_path):
    """A copy of the directory whose weights can be changed: `copy(change)` gives its path."""

    def make(change=None, settings=None):
        directory = tmp_path / "copy"
        directory.mkdir()
        weights = safetensors.torch.load_file(source / "model.safetensors")
        if change is not None:
            change(weights)
        safetensors.torch.save_file(weights, directory / "model.safetensors")
        config = json.loads((source / "config.json").read_text())
        if settings is not None:
            settings(config)
        (directory / "config.json").write_text(json.dumps(config))
        return directory

    return make


@pytest.fixture
def rejected(tmp_path, capfd):
    """Converts and checks that it fails in one line, which is returned, and writes nothing."""

    def check(path, *arguments, status=1):
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        assert convert(path, "--out", out / "f.safetensors", *arguments) == status
        captured = capfd.readouterr()
        lines = captured.err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
        assert list(out.iterdir()) == []
        return lines[0]

    return check


def test_extra_key(copy, rejected):
    line = rejected(copy(lambda weights: weights.update(surprise=torch.ones(3))))
    assert "surprise" in line


def test_missing_key(copy, rejected):
    assert QKV in rejected(copy(lambda weights: weights.pop(QKV)))


def test_missing_key_that_tells_the_architecture(tmp_path, rejected):
    weights = checkpoints.openai_state_dict(checkpoints.huggingface_model())
    del weights["visual.class_embedding"]
    torch.save(weights, tmp_path / "m.pt")
    assert "visual.class_embedding" in rejected(tmp_path / "m.pt", "--activation", "gelu")


@pytest.mark.parametrize("shape", [(128, 64), (64, 256)])  # the second has as many elements
def test_wrong_shape(copy, rejected, shape):
    def change(weights):
        weights["vision_model.encoder.layers.1.self_attn.v_proj.weight"] = torch.ones(shape)

    line = rejected(copy(change))
    assert f"vision_model.encoder.layers.1.self_attn.v_proj.weight is {list(shape)}, not [128, 128]" in line


def test_integers_for_weights(copy, rejected):
    line = rejected(copy(lambda weights: weights.update({QKV: weights[QKV].long()})))
    assert QKV in line and "int64" in line


def test_renamed_layer(copy, rejected):
    def change(weights):
        weights["vision_model.encoder.layers.0.self_attn.query.weight"] = weights.pop(QKV)

    line = rejected(copy(change))
    assert QKV in line and "vision_model.encoder.layers.0.self_attn.query.weight" in line


def test_layer_beyond_the_config(copy, rejected):
    line = rejected(copy(settings=lambda config: config["vision_config"].update(num_hidden_layers=1)))
    assert "vision_model.encoder.layers.1." in line


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_truncated_file(tmp_path, rejected, kind, share):
    weights = checkpoints.openai_state_dict(checkpoints.huggingface_model())
    path = tmp_path / f"m.{kind}"
    torch.save(weights, path) if kind == "pt" else safetensors.torch.save_file(weights, path)
    contents = path.read_bytes()
    path.write_bytes(contents[: int(len(contents) * share)])
    assert str(path) in rejected(path, "--activation", "quick_gelu")


@pytest.mark.parametrize("form", ["archive", "legacy", "bare", "in a directory"])
def test_pickle_that_runs_code(copy, tmp_path, rejected, form):
    canary = tmp_path / "canary"
    weights = {**checkpoints.openai_state_dict(checkpoints.huggingface_model()), "x": _Hostile(canary)}
    path = tmp_path / "m.pt"
    if form == "in a directory":
        path = copy()
        (path / "model.safetensors").unlink()
        torch.save(weights, path / "pytorch_model.bin")
    elif form == "bare":
        path.write_bytes(pickle.dumps(weights["x"]))
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=form == "archive")
    line = rejected(path, "--activation", "quick_gelu")
    assert str(path) in line and "system" in line
    assert not canary.exists()


def test_torchscript_archive_that_runs_code(tmp_path, rejected):
    canary = tmp_path / "canary"
    model = checkpoints.huggingface_model()
    plain, hostile = tmp_path / "plain.pt", tmp_path / "m.pt"
    checkpoints.write_torchscript(plain, checkpoints.openai_state_dict(model), resolution=224)
    with zipfile.ZipFile(plain) as archive, zipfile.ZipFile(hostile, "w") as changed:
        for name in archive.namelist():
            harmful = name.endswith("/data.pkl")
            changed.writestr(name, pickle.dumps(_Hostile(canary), 2) if harmful else archive.read(name))
    assert "system" in rejected(hostile)
    assert not canary.exists()


def test_tensor_that_reaches_beyond_its_data(tmp_path, rejected):
    weights = checkpoints.openai_state_dict(checkpoints.huggingface_model())
    plain, changed = tmp_path / "plain.pt", tmp_path / "m.pt"
    torch.save(weights, plain)
    with zipfile.ZipFile(plain) as archive, zipfile.ZipFile(changed, "w") as target:
        for name in archive.namelist():
            contents = archive.read(name)
            target.writestr(name, contents[:-4] if name.endswith("/data/0") else contents)
    assert "exceeds its data" in rejected(changed, "--activation", "quick_gelu")


def test_huggingface_directory_without_its_config(copy, rejected):
    path = copy()
    (path / "config.json").unlink()
    assert "config.json" in rejected(path)
    # Nor is its weight file enough by itself.
    assert "config.json" in rejected(path / "model.safetensors")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (lambda config: config.update(model_type="siglip"), "siglip"),
        (lambda config: config["vision_config"].update(hidden_act="gelu_new"), "gelu_new"),
        (lambda config: config["vision_config"].update(num_attention_heads=3), "heads"),
        (lambda config: config["text_config"].update(layer_norm_eps=1e-6), "epsilon"),
        (lambda config: config["vision_config"].update(patch_size="x"), "config.json"),
    ],
)
def test_config_of_another_model(copy, rejected, settings, named):
    assert named in rejected(copy(settings=settings))


def test_bare_weights_are_taken_for_openais_and_it_is_said(tmp_path, capsys):
    torch.save(checkpoints.openai_state_dict(checkpoints.huggingface_model()), tmp_path / "m.pt")
    out = tmp_path / "f.safetensors"
    assert convert(tmp_path / "m.pt", "--out", out) == 0
    assert ClipFile(out).description.architecture.numerics.activation == "quick_gelu"
    assert "--activation gelu" in capsys.readouterr().err


def test_option_against_what_the_source_says(source, rejected):
    assert "config.json states quick_gelu" in rejected(source, "--activation", "gelu", status=2)


def test_something_else(tmp_path, rejected):
    safetensors.torch.save_file({"fc.weight": torch.ones(2, 2)}, tmp_path / "m.safetensors")
    assert "fc.weight" in rejected(tmp_path / "m.safetensors")
    (tmp_path / "m.txt").write_text("not a checkpoint")
    assert "m.txt" in rejected(tmp_path / "m.txt")
    assert "does not exist" in rejected(tmp_path / "absent.pt")


def test_what_is_converted_already(source, tmp_path, rejected):
    assert convert(source, "--out", tmp_path / "f.safetensors") == 0
    assert "already" in rejected(tmp_path / "f.safetensors")


def test_vocabulary_of_another_size(source, tmp_path, rejected):
    ids, merges = checkpoints.vocabulary()
    (tmp_path / "vocab.json").write_text(json.dumps(dict(list(ids.items())[:-3])))
    (tmp_path / "merges.txt").write_text("\n".join(merges))
    assert "vocab.json" in rejected(source, "--vocab", tmp_path / "vocab.json")


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        ({"visual.scale": 3.0}, "no place here: visual.scale"),
        ({"visual.extra": [torch.ones(2)]}, "no place here: visual.extra"),
        ({"logit_scale": 4.6}, "logit_scale is not a tensor"),
    ],
)
def test_entries_that_are_no_tensors(tmp_path, rejected, extra, line):
    weights = checkpoints.openai_state_dict(checkpoints.huggingface_model())
    torch.save({**weights, **extra}, tmp_path / "m.pt")
    assert line in rejected(tmp_path / "m.pt", "--activation", "quick_gelu")


def test_head_size_that_does_not_divide_both_widths(tmp_path, rejected):
    torch.save(checkpoints.openai_state_dict(checkpoints.huggingface_model()), tmp_path / "m.pt")
    line = rejected(tmp_path / "m.pt", "--activation", "gelu", "--head_size", "24", status=2)
    assert "of width 24 do not divide the image tower's width 128" in line
    assert line.endswith("--head_size should be one of 1, 2, 4, 8, 16, 32, 64")


@pytest.mark.parametrize("kind", ["torchscript", "state dict"])
@pytest.mark.parametrize("contents", ["[]", "nonsense", '{"model_type": "bert"}'])
def test_settings_of_something_else_beside_openais_weights(tmp_path, kind, contents):
    weights = checkpoints.openai_state_dict(checkpoints.huggingface_model())
    unrelated = ["config.json", "preprocessor_config.json"]
    if kind == "torchscript":
        checkpoints.write_torchscript(tmp_path / "m.pt", weights, resolution=224)
        unrelated.append("open_clip_config.json")
    else:
        torch.save(weights, tmp_path / "m.pt")
    for name in unrelated:
        (tmp_path / name).write_text(contents)
    out = tmp_path / "f.safetensors"
    assert convert(tmp_path / "m.pt", "--out", out) == 0
    assert ClipFile(out).description.architecture.numerics.activation == "quick_gelu"


def test_settings_that_the_weights_need(copy, rejected):
    path = copy()
    (path / "config.json").write_text("[]")
    assert "is not a JSON object" in rejected(path)


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (
            b"\n<!DOCTYPE html><html><body>Sign in</body></html>",
            "is an HTML page, such as a login",
        ),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is an XML document"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 598641023\n",
            "is a Git LFS pointer for a file of 598,641,023 bytes, not the weights: run",
        ),
        (b"\x1f\x8b\x08\0\0", "is compressed with gzip: unpack it first"),
        (b'{"weight_map": {}}', "is JSON, not weights"),
        (b"", "is empty"),
        (b"<!-- moved -->\n<!DOCTYPE html>", "is an HTML page, such as a login"),
        ("Zugriff verweigert: zu h\u00e4ufig\n".encode(), "is text, not weights: it begins with 'Zugriff"),
        (b"\0\0\0\x20ftypisom", r"save a model's state_dict\(\) with torch\.save, or give a safetensors"),
        (pickle.dumps({"a": 1}), r"that torch\.save did not write: save a model's state_dict"),
    ],
)
@pytest.mark.parametrize("name", ["m.pt", "model.safetensors"])
def test_a_file_that_holds_no_weights_is_called_what_it_is(copy, tmp_path, rejected, name, contents, said):
    path = tmp_path / name
    if name == "model.safetensors":  # as a repository cloned without LFS has it
        path = copy() / name
        if contents.startswith(b"\0"):
            said = "not a safetensors file"
    path.write_bytes(contents)
    line = rejected(path.parent if name == "model.safetensors" else path)
    assert str(path) in line and re.search(said, line)


def test_a_zip_of_something_else(tmp_path, rejected):
    np.savez(tmp_path / "m.npz", a=np.ones(2))
    assert "no data.pkl): save a model's state_dict()" in rejected(tmp_path / "m.npz")


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_floats_of_8_bits_are_named(tmp_path, rejected, kind):
    weights = checkpoints.openai_state_dict(checkpoints.huggingface_model())
    weights["visual.proj"] = weights["visual.proj"].to(torch.float8_e4m3fn)
    path = tmp_path / f"m.{kind}"
    torch.save(weights, path) if kind == "pt" else safetensors.torch.save_file(weights, path)
    line = rejected(path, "--activation", "gelu")
    assert "visual.proj is float8_e4m3fn, not a float of 16 or 32 bits: call model.half()" in line


def test_keys_are_named_as_the_file_has_them(tmp_path, rejected):
    whole = checkpoints.openai_state_dict(checkpoints.huggingface_model())
    tower = {name.removeprefix("visual."): value for name, value in whole.items() if "visual." in name}
    for prefix in ("", "backbone."):
        weights = {prefix + name: value for name, value in tower.items()}
        weights[f"{prefix}fc.weight"] = torch.ones(2)
        del weights[f"{prefix}ln_post.bias"]
        torch.save(weights, tmp_path / "m.pt")
        line = rejected(tmp_path / "m.pt", "--activation", "gelu")
        assert f"no place here: {prefix}fc.weight; missing: {prefix}ln_post.bias" in line
        del weights[f"{prefix}class_embedding"]
        torch.save(weights, tmp_path / "m.pt")
        assert f"missing: {prefix}class_embedding, which" in rejected(tmp_path / "m.pt")


def test_a_tower_of_another_kind(tmp_path, rejected):
    weights = checkpoints.openai_state_dict(checkpoints.huggingface_model())
    weights = {name: value for name, value in weights.items() if not name.startswith("visual.")}
    weights |= {f"visual.{part}conv1.weight": torch.ones(2, 2, 1, 1) for part in ("", "layer1.0.")}
    torch.save(weights, tmp_path / "m.pt")
    assert "is a ResNet, a convolutional network, which is not supported" in rejected(tmp_path / "m.pt")


def test_two_towers_are_not_chosen_from(tmp_path, rejected):
    weights = checkpoints.openai_state_dict(checkpoints.huggingface_model())
    teacher = {name: value + 1 for name, value in weights.items()}
    torch.save({"student": weights, "teacher": teacher}, tmp_path / "m.pt")
    assert "several image towers, under `student.` and `teacher.`" in rejected(tmp_path / "m.pt")


def test_the_same_key_with_and_without_a_wrapper(tmp_path, rejected):
    weights = checkpoints.openai_state_dict(checkpoints.huggingface_model())
    torch.save({**weights, "_orig_mod.visual.proj": weights["visual.proj"]}, tmp_path / "m.pt")
    assert "holds visual.proj twice: as visual.proj and as _orig_mod.visual.proj" in rejected(
        tmp_path / "m.pt"
    )


def test_openais_vocabulary_for_another_text_tower(tmp_path, rejected):
    """Also where it merely lies beside: the text features would be wrong in silence."""
    merges = [f"{chr(n)} {chr(m)}" for n in range(0x4E00, 0x4E00 + 240) for m in range(0x4E00, 0x4E00 + 240)]
    (tmp_path / "bpe_simple_vocab_16e6.txt").write_text("\n".join(merges))
    torch.save(checkpoints.openai_state_dict(checkpoints.huggingface_model()), tmp_path / "m.pt")
    line = rejected(tmp_path / "m.pt", "--activation", "gelu")
    assert "bpe_simple_vocab_16e6.txt is not the vocabulary of this text tower, which has 525 tokens" in line
