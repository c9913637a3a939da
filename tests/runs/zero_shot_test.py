"""A run is trained against the texts of its classes, and classifies by other names after it."""

import dataclasses

import numpy as np
import pytest
import safetensors

import inti_jax
from inti_jax import predict
from inti_jax.config.backbones import BACKBONES
from inti_jax.data.dataset import open_dataset
from inti_jax.distributed import sharding
from inti_jax.errors import UserError
from inti_jax.pretrained.api import load_clip
from inti_jax.runs import trained, zero_shot
from inti_jax.runs.writers.jsonl import read_metrics
from inti_jax.training import loop
from tests.commands import convert
from tests.configs import record, tiny
from tests.pretrained import checkpoints

pytestmark = pytest.mark.usefixtures("unreported")

TEMPLATES = ("a photo of {}.", "the dog and {}")


@pytest.fixture(scope="module", autouse=True)
def shallow():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", dataclasses.replace(BACKBONES["tiny"], layers=1))
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    directory = tmp_path_factory.mktemp("clip")
    model = checkpoints.huggingface_model("tiny", activation="gelu", layers=1, resolution=32)
    checkpoints.write_huggingface(directory / "hf", model)
    assert convert(directory / "hf", "--out", directory / "clip.safetensors") == 0
    return directory / "clip.safetensors"


@pytest.fixture(scope="module")
def workdir(motion_data, weights, tmp_path_factory):
    """A run that trained the projection and the scale of its head with the contrastive loss."""
    path = tmp_path_factory.mktemp("contrastive")
    settings = tiny(
        motion_data,
        model__pretrained=str(weights),
        model__adaptation="linear",
        model__head__init="text",
        model__head__templates=TEMPLATES,
        model__freeze=("head.classes",),
        train__loss="contrastive",
        train__steps=2,
    )
    loop.train(settings, path)
    return path


def video():
    return np.random.default_rng(0).integers(0, 256, (2, 8, 32, 32, 3), np.uint8)


def test_the_classes_stay_those_of_the_text_tower(workdir, weights):
    steps = [entry for entry in read_metrics(workdir) if entry["split"] == "train"]
    assert all(entry["loss"] > 0 and entry["grad_norm"] > 0 for entry in steps)
    assert convert(workdir, "--to", "trained", "--out", workdir / "small.safetensors") == 0
    with safetensors.safe_open(workdir / "small.safetensors", "numpy") as file:
        assert set(file.keys()) == {"head.projection.kernel", "head.logit_scale"}
        assert np.abs(file.get_tensor("head.projection.kernel") - load_clip(weights).projection).max() > 0


def test_the_own_names_give_the_trained_classifier(workdir):
    model = inti_jax.load(workdir)
    again = model.with_labels(["push", "pull", "turn"]).with_labels(model.labels)
    assert again.labels == model.labels
    np.testing.assert_array_equal(again(video()), model(video()))


def test_other_names_are_classified_by_their_texts(workdir, weights, motion_data, tmp_path):
    model, labels = inti_jax.load(workdir), ("push it", "TurnAround", "12 dogs")
    found = model.with_labels(labels, templates=["the {}"])
    params = trained.load(workdir, sharding.one_device_mesh()).params
    projected = model.features(video()) @ np.asarray(params["head.projection.kernel"])
    projected /= np.linalg.norm(projected, axis=-1, keepdims=True)
    texts = load_clip(weights).encode_text(["the push it", "the turn around", "the 12 dogs"])
    texts /= np.linalg.norm(texts, axis=-1, keepdims=True)
    expected = np.exp(params["head.logit_scale"]) * projected @ texts.T
    np.testing.assert_allclose(found(video()), expected, rtol=1e-4, atol=1e-4)

    path = tmp_path / "clip.mp4"
    path.write_bytes(open_dataset("motion_digits", motion_data, "val")[0].video)
    (result,) = predict.predict_files(workdir, [path], topk=5, labels=labels)
    assert {entry["label"] for entry in result["predictions"]} == set(labels)
    assert sum(entry["probability"] for entry in result["predictions"]) == pytest.approx(1)
    # The CLIP may have moved; a run's directory names it by its former place.
    (moved,) = predict.predict_files(workdir, [path], 5, weights, labels=labels)
    assert moved == result


def test_labels_are_a_list_with_commas_or_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("push, then pull\nturn\n")
    assert predict._labels(str(tmp_path / "names.txt")) == ("push, then pull", "turn")
    assert predict._labels("push, turn") == ("push", "turn")
    with pytest.raises(UserError, match=r"absent.txt cannot be read"):
        predict._labels(str(tmp_path / "absent.txt"))


@pytest.mark.parametrize(
    ("labels", "templates", "reason"),
    [
        ([], None, "give a list of one class name or more"),
        ("push", None, "give a list of one class name or more"),
        (["push", " "], None, "give each class a name"),
        (["push", "push"], None, "`push` is given twice"),
        (["push"], ["a photo"], "one {} for the class name"),
    ],
)
def test_unusable_labels_are_refused(workdir, labels, templates, reason):
    with pytest.raises(UserError, match=reason):
        inti_jax.load(workdir).with_labels(labels, templates=templates)


def test_a_run_without_texts_takes_no_other_labels(workdir, weights, tmp_path):
    with pytest.raises(
        UserError, match=r'`model\.head\.init` is "random": only a classifier that starts from'
    ):
        zero_shot.with_labels(record(tiny()), {}, ["push"])
    model = inti_jax.load(workdir)
    with pytest.raises(UserError, match=r"need the text tower of the run's `model\.pretrained`: .*gone"):
        model.with_labels(["push"], pretrained=tmp_path / "gone.safetensors")
    other = checkpoints.huggingface_model("tiny", activation="gelu", layers=2, resolution=32)
    checkpoints.write_huggingface(tmp_path / "hf", other)
    with pytest.raises(UserError, match="holds other weights than those that the run started from"):
        model.with_labels(["push"], pretrained=tmp_path / "hf")
