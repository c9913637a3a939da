"""Weights by their names on the Hub: which files are taken, and that they give what files here give."""

import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch

import inti_jax
from inti_jax.config import ConfigError
from inti_jax.errors import UserError
from inti_jax.hub import names
from inti_jax.pretrained.clip_file import ClipFile
from inti_jax.pretrained.converted import open_converted
from inti_jax.runs.backbone import find_backbone, pin
from tests.commands import convert
from tests.configs import record, tiny
from tests.pretrained import checkpoints
from tests.pretrained.weights import write_tiny
from tests.processes import environment

CLIP = "openai/clip-vit-tiny"


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """The same tiny CLIP as the Hub has it: in one file, in shards, and as a pickle."""
    where, model = tmp_path_factory.mktemp("forms"), checkpoints.huggingface_model(resolution=32, layers=1)
    for form in ("safetensors", "shards", "bin"):
        directory = checkpoints.write_huggingface(where / form, model, form=form)
        (directory / "tf_model.h5").write_bytes(b"another library's")
        (directory / "flax_model.msgpack").write_bytes(b"another library's")
    return where


@pytest.fixture(scope="module")
def expected(forms, tmp_path_factory):
    """The hash of the weights that converting the files here gives."""
    out = tmp_path_factory.mktemp("expected") / "clip.safetensors"
    assert convert(forms / "safetensors", "--out", out) == 0
    return ClipFile(out).hash


@pytest.mark.parametrize("form", ["safetensors", "shards", "bin"])
def test_each_form_is_converted_from_no_more_files_than_it_takes(
    hub, forms, expected, tmp_path, capsys, form
):
    commit = hub.publish(CLIP, forms / form)
    out = tmp_path / "clip.safetensors"
    assert convert(CLIP, "--out", out) == 0
    assert f"hf://{CLIP}@{commit}: huggingface naming" in capsys.readouterr().out
    file = ClipFile(out)
    assert file.hash == expected and file.description.vocabulary is not None
    if form == "shards":
        assert convert("--verify", out, "--against", CLIP) == 0
    weights = {path.name for path in (forms / form).glob("*model*") if path.suffix not in (".h5", ".msgpack")}
    assert sorted(hub.downloads()) == sorted({"config.json", "vocab.json", "merges.txt", *weights})


def test_safetensors_are_taken_and_a_pickle_beside_them_is_refused(hub, forms, tmp_path, capsys):
    both = {
        path.name: path.read_bytes() for form in ("bin", "safetensors") for path in (forms / form).iterdir()
    }
    hub.publish(CLIP, both)
    out = tmp_path / "clip.safetensors"
    assert convert(f"hf://{CLIP}/pytorch_model.bin", "--out", out) == 1
    assert "may be a pickle, and the repository has model.safetensors: name that" in capsys.readouterr().err
    assert convert(f"hf://{CLIP}", "--out", out) == 0
    assert "pytorch_model.bin" not in hub.downloads()


def test_a_hostile_index_leads_nowhere(hub, forms, tmp_path, capsys):
    files = {path.name: path.read_bytes() for path in (forms / "shards").iterdir()}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": {"a": "../../../etc/passwd"}}).encode()
    hub.publish(CLIP, files)
    assert convert(CLIP, "--out", tmp_path / "clip.safetensors") == 1
    assert "names the shard passwd, which is not beside it" in capsys.readouterr().err


def test_timms_config_beside_open_clips_does_not_hide_it(hub, forms, tmp_path):
    """timm's repositories of CLIP hold its image tower alone, and the whole model for open_clip."""
    weights = checkpoints.openai_state_dict(checkpoints.huggingface_model(resolution=32, layers=1))
    model_cfg = {"embed_dim": 32, "quick_gelu": True, "vision_cfg": {"image_size": 32}, "text_cfg": {}}
    hub.publish(
        "timm/vit_base_patch16_clip_224.openai",
        {
            "config.json": b'{"architecture": "vit_base_patch16_clip_224"}',
            "model.safetensors": b"timm's",
            "open_clip_config.json": json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}).encode(),
            "open_clip_model.safetensors": safetensors.torch.save(weights),
            "open_clip_pytorch_model.bin": b"the same as a pickle",
        },
    )
    out = tmp_path / "clip.safetensors"
    assert convert("ViT-B-16/openai", "--out", out) == 0
    assert ClipFile(out).description.architecture.numerics.activation == "quick_gelu"
    assert "model.safetensors" not in hub.downloads()


def test_weights_are_converted_once_and_need_no_connection_then(hub, forms, expected, offline, monkeypatch):
    hub.publish(CLIP, forms / "safetensors")
    assert open_converted(CLIP).hash == expected
    downloads = len(hub.downloads())
    image = np.zeros((1, 32, 32, 3), np.uint8)
    features = inti_jax.load_clip(CLIP).encode_image(image)
    offline()
    np.testing.assert_array_equal(inti_jax.load_clip(f"hf://{CLIP}").encode_image(image), features)
    assert len(hub.downloads()) == downloads


def test_a_file_of_this_project_is_taken_as_it_is(hub, tmp_path):
    path = write_tiny(tmp_path / "b16.safetensors")
    hub.publish("me/weights", {"b16.safetensors": path.read_bytes(), "config.json": b"{}"})
    assert open_converted("hf://me/weights/b16.safetensors").hash == ClipFile(path).hash
    assert hub.downloads() == ["b16.safetensors"]
    assert not list(tmp_path.rglob("*.inti_jax.safetensors"))


def test_a_run_stays_at_its_commit(hub, forms, expected):
    commit = hub.publish(CLIP, forms / "safetensors")
    settings = tiny(model__backbone="auto", model__pretrained=CLIP)
    pinned = pin(settings)
    assert pinned.model.pretrained == f"hf://{CLIP}@{commit}"
    backbone = find_backbone(pinned)
    assert backbone.sha256 == expected
    earlier = record(pinned, backbone=backbone)
    hub.publish(CLIP, {"config.json": b"{}", "model.safetensors": b"others"})
    hub.down = True
    again = pin(settings, earlier)
    assert again.model.pretrained == pinned.model.pretrained
    assert find_backbone(again, earlier) == backbone
    hub.down = False
    with pytest.raises(ConfigError, match=r"`model.pretrained`: hf://.*no revision v2"):
        pin(tiny(model__backbone="auto", model__pretrained=f"hf://{CLIP}@v2"), earlier)


def test_a_directory_that_a_run_started_from_may_be_gone(tmp_path, monkeypatch):
    """Its name looks like one on the Hub then."""
    monkeypatch.chdir(tmp_path)
    settings = tiny(model__pretrained="weights/clip")
    earlier = record(settings)
    assert pin(settings, earlier) == settings
    assert find_backbone(settings, earlier) == earlier.backbone


def test_a_name_that_is_neither_says_both(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert convert("runs/mine", "--out", tmp_path / "x.safetensors") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert (
        "runs/mine: there is no such file or directory; as a name on the Hugging Face Hub: the Hub has no"
        in said
    )


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'needs? the library huggingface_hub: pip install "inti-jax\[hub\]"'):
        open_converted(names.place("hf://org/name"))


def test_the_environment_says_where_the_hub_and_the_cache_are(hub, forms, tmp_path):
    """As users set it, in a process of its own."""
    hub.publish(CLIP, forms / "safetensors", token="hf_topsecret")
    home = tmp_path / "home"
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_TOKEN": "hf_topsecret"}
    program = f"import inti_jax; print(inti_jax.load_tower({CLIP!r}).description.architecture.image.width)"
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment(1) | env, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (0, "128\n"), ended.stderr
    assert "topsecret" not in ended.stderr
    assert [path.suffix for path in (home / "assets").rglob("*.inti_jax.*")] == [".safetensors"]
