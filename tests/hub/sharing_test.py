"""A run written as a shared model gives, here and from the Hub, the run's own predictions to the bit."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import yaml

import inti_jax
from inti_jax.data.codec.encode import encode
from inti_jax.distributed import sharding
from inti_jax.errors import UserError
from inti_jax.hub import names
from inti_jax.predict import predict_files
from inti_jax.runs import trained
from inti_jax.runs.record import RunRecord
from inti_jax.training import loop
from tests.commands import convert
from tests.configs import INTI, tiny
from tests.hub.conftest import serving_to_the_library
from tests.pretrained.weights import write_tiny

pytestmark = pytest.mark.usefixtures("unreported")

WEIGHTS = "hf://me/weights/b16.safetensors"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("secret-place") / "b16.safetensors")


@pytest.fixture(scope="module")
def run(motion_data, weights, tmp_path_factory):
    """A finished run on frozen weights, which it took from the Hub."""
    workdir = tmp_path_factory.mktemp("runs") / "inti-linear"
    changes = {"model__adaptation": "linear", "train__steps": 1, "train__writers": ()}
    with serving_to_the_library(tmp_path_factory.mktemp("hf")) as hub:
        hub.publish("me/weights", {"b16.safetensors": weights.read_bytes()})
        loop.train(tiny(motion_data, **INTI, **changes, model__pretrained=WEIGHTS), workdir)
    return workdir


@pytest.fixture(scope="module")
def local(run, weights, tmp_path_factory):
    """The same run as if it had taken the weights from a file here."""
    workdir = tmp_path_factory.mktemp("local") / run.name
    shutil.copytree(run, workdir)
    record = json.loads((run / "config.json").read_text())
    record["model"]["pretrained"] = str(weights)
    (workdir / "config.json").write_text(json.dumps(record))
    return workdir


@pytest.fixture(scope="module")
def clip():
    return np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def logits(run, clip):
    return inti_jax.load(run)(clip)


@pytest.fixture(scope="module")
def shared(local, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "shared"
    assert convert(local, "--to", "hub", "--out", out) == 0
    return out


def test_the_directory_of_what_trained_goes_on_the_weights(shared, weights, clip, logits):
    np.testing.assert_array_equal(inti_jax.load(shared, pretrained=weights)(clip), logits)
    with pytest.raises(UserError, match=r"b16\.safetensors: there is no such file"):
        inti_jax.load(shared)
    names = {"README.md", "config.json", "labels.txt", "metrics.json", "model.safetensors"}
    assert {path.name for path in shared.iterdir()} == names


def test_the_card_says_what_the_run_says(run, shared):
    card = (shared / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["pipeline_tag"], front["library_name"]) == ("video-classification", "inti-jax")
    metrics = json.loads((shared / "metrics.json").read_text())
    top1 = next(each["top1"] for each in metrics["evaluations"] if each["step"] == metrics["step"] == 1)
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "accuracy", "name": "top-1", "value": round(100 * top1, 2)}
    assert 'inti_jax.load("hf://ORGANISATION/shared", pretrained="b16.safetensors")' in card
    assert "| `model.compression.kind` | inti |" in card
    assert (shared / "labels.txt").read_text().splitlines() == list(RunRecord.read(run).dataset.labels)


def test_no_path_of_the_machine_is_shared(shared, motion_data):
    for path in shared.iterdir():
        content = path.read_bytes()
        assert b"secret-place" not in content and str(motion_data).encode() not in content, path


def test_a_whole_model_loads_from_the_hub_by_its_name(hub, local, clip, logits, offline, tmp_path):
    out = tmp_path / "shared"
    assert convert(local, "--to", "hub", "--all", "--out", out) == 0
    commit = hub.publish("me/shared", out)
    np.testing.assert_array_equal(inti_jax.load("hf://me/shared")(clip), logits)
    assert hub.downloads() == ["model.safetensors"]
    offline()
    (tmp_path / "video.mp4").write_bytes(encode(clip, fps=8))
    name = names.local_or_uri(f"hf://me/shared@{commit}")  # as --checkpoint reads it
    (found,) = predict_files(name, [tmp_path / "video.mp4"], topk=10)
    assert {entry["label"] for entry in found["predictions"]} == set(RunRecord.read(local).dataset.labels)
    with pytest.raises(UserError, match="holds its own backbone: leave out --pretrained"):
        inti_jax.load(out, pretrained="b16.safetensors")


def test_a_run_may_start_from_a_shared_model(local, tmp_path):
    out = tmp_path / "shared"
    assert convert(local, "--to", "hub", "--all", "--out", out) == 0
    record, mesh = RunRecord.read(local), sharding.one_device_mesh()
    model = dataclasses.replace(record.config.model, start_from=str(out))
    record = dataclasses.replace(record, config=dataclasses.replace(record.config, model=model))
    started, expected = trained.start(record, mesh).params, trained.load(local, mesh).params
    assert started.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(started[name], value)


def test_weights_on_the_hub_are_found_by_a_shared_model_itself(hub, run, weights, clip, logits, tmp_path):
    commit = hub.publish("me/weights", {"b16.safetensors": weights.read_bytes()})
    pretrained = json.loads((run / "config.json").read_text())["model"]["pretrained"]
    assert pretrained == f"hf://me/weights@{commit}/b16.safetensors"
    out = tmp_path / "shared"
    assert convert(run, "--to", "hub", "--out", out) == 0
    assert 'base_model: "me/weights"' in (out / "README.md").read_text()
    hub.publish("me/weights", {"b16.safetensors": b"another commit"})
    hub.publish("me/shared", out)
    np.testing.assert_array_equal(inti_jax.load("hf://me/shared")(clip), logits)


def test_an_existing_directory_is_not_written_to(run, tmp_path, capsys):
    assert convert(run, "--to", "hub", "--out", tmp_path) == 2
    assert "exists: name a directory that does not" in capsys.readouterr().err
    assert convert(run, "--all", "--out", tmp_path / "x.safetensors") == 2
