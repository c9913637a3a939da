"""Small checkpoints: what a run trained, alone, and pinned to what it goes on."""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy

import inti_jax
from inti_jax import predict
from inti_jax.config import Mesh
from inti_jax.data.dataset import open_dataset
from inti_jax.distributed import sharding
from inti_jax.errors import UserError
from inti_jax.evaluation import evaluate
from inti_jax.runs import trained, trained_file
from inti_jax.runs.writers.jsonl import read_metrics
from inti_jax.training import loop
from tests.commands import convert
from tests.configs import INTI, tiny
from tests.pretrained.weights import write_tiny

pytestmark = pytest.mark.usefixtures("unreported")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("weights") / "clip.safetensors")


def settings_for(motion_data, weights, **changes):
    return tiny(
        motion_data,
        **INTI,
        model__pretrained=str(weights),
        model__adaptation="lora",
        train__steps=2,
        **changes,
    )


@pytest.fixture(scope="module")
def workdir(motion_data, weights, tmp_path_factory):
    """A run that trained LoRA and a compressor."""
    path = tmp_path_factory.mktemp("lora")
    loop.train(settings_for(motion_data, weights), path)
    return path


@pytest.fixture(scope="module")
def small(workdir):
    assert convert(workdir, "--to", "trained", "--out", workdir / "small.safetensors") == 0
    return workdir / "small.safetensors"


def video():
    return np.random.default_rng(0).integers(0, 256, (2, 4, 40, 48, 3), np.uint8)


def test_it_is_small_and_with_its_backbone_the_whole_model(workdir, weights, small):
    assert small.stat().st_size < 0.2 * weights.stat().st_size
    assert not any(name.startswith("tower.") for name in safetensors.numpy.load_file(small))
    expected = inti_jax.load(workdir)
    found = inti_jax.load(small, pretrained=weights)
    assert found.labels == expected.labels
    np.testing.assert_array_equal(found(video()), expected(video()))
    np.testing.assert_array_equal(inti_jax.load(small)(video()), expected(video()))  # where the run found it


def test_predict_takes_it(workdir, weights, small, motion_data, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(open_dataset("motion_digits", motion_data, "val")[0].video)
    expected = list(predict.predict_files(workdir, [path], topk=3))
    assert list(predict.predict_files(small, [path], 3, weights)) == expected


def test_a_run_starts_from_it(workdir, weights, small, motion_data, tmp_path):
    settings = settings_for(motion_data, weights, model__start_from=str(small))
    evaluate.evaluate_run(settings, tmp_path / "eval")
    (figures,) = read_metrics(tmp_path / "eval")
    before = [entry for entry in read_metrics(workdir) if entry["split"] == "val"][-1]
    assert figures["step"] == 0
    assert [figures[key] for key in ("top1", "top5", "evaluated", "dataset")] == [
        before[key] for key in ("top1", "top5", "evaluated", "dataset")
    ]
    loop.train(settings, tmp_path / "on")
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    first, on = (trained.load(path, mesh).params for path in (workdir, tmp_path / "on"))
    assert all(np.isfinite(leaf).all() for leaf in on.values())
    assert (
        np.abs(on["adapters.0.lora_query.down.kernel"] - first["adapters.0.lora_query.down.kernel"]).max() > 0
    )
    np.testing.assert_array_equal(on["tower.ln_post.scale"], first["tower.ln_post.scale"])


def test_another_backbone_is_refused(small, motion_data, tmp_path):
    other = write_tiny(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(UserError, match="was trained on the backbone") as caught:
        inti_jax.load(small, pretrained=other)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="was trained on the backbone"):
        loop.train(settings_for(motion_data, other, model__start_from=str(small)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_labels_or_another_model_are_refused(weights, small, motion_data, workdir):
    theirs = trained_file.read_record(small)
    labels = ("left", *theirs.dataset.labels[1:])
    renamed = dataclasses.replace(theirs, dataset=dataclasses.replace(theirs.dataset, labels=labels))
    with pytest.raises(UserError, match="class 0 is `right` there, and `left` in motion_digits"):
        trained_file.check_fits(small, theirs, renamed)
    fewer = dataclasses.replace(theirs, dataset=dataclasses.replace(theirs.dataset, labels=labels[:3][::-1]))
    with pytest.raises(UserError, match=r"class 0 is|trained on 10 labels"):
        trained_file.check_fits(small, theirs, fewer)
    with pytest.raises(UserError, match=r"another model: its `model.adaptation` is lora, here it is aim"):
        other = settings_for(motion_data, weights)
        model = dataclasses.replace(other.model, adaptation="aim")
        ours = dataclasses.replace(theirs, config=dataclasses.replace(other, model=model))
        trained_file.check_fits(small, theirs, ours)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "damaged, truncated"),
        (lambda content: b"", "is empty"),
        (
            lambda content: b"PK\3\4",
            r"is a torch checkpoint; give a file of the parameters that a run trained",
        ),
        (lambda content: b"<!DOCTYPE html>", "is an HTML page"),
        (lambda content: content.replace(b"lora_query", b"lora_quero"), "does not match the model"),
        (
            lambda content: content.replace(b'"inti_jax.trained"', b'"inti_jax.traimed"'),
            "does not hold the parameters that a run",
        ),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(small, weights, tmp_path, damage, message):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(damage(small.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        inti_jax.load(path, pretrained=weights)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_other_files_where_what_a_run_trained_is_meant(workdir, weights, small, motion_data, tmp_path):
    """Each is called what it is, by all that take such a file, with a way out."""
    torch = tmp_path / "ViT-B-16.pt"
    torch.write_bytes(b"PK\3\4")
    said = {
        torch: r"torch checkpoint; .*--to trained.*Pass CLIP's weights as `model\.pretrained`",
        weights: r"is a converted CLIP.*`model\.pretrained`, or load it with inti_jax\.load_clip",
    }
    for path, message in said.items():
        with pytest.raises(UserError, match=message):
            inti_jax.load(path)
        with pytest.raises(UserError, match=message):
            list(predict.predict_files(path, [tmp_path / "video.mp4"], topk=1))
        with pytest.raises(UserError, match=message):
            loop.train(settings_for(motion_data, weights, model__start_from=str(path)), tmp_path / "run")
    with pytest.raises(UserError, match=rf"is a directory: `python -m inti_jax\.convert {workdir} --to"):
        loop.train(settings_for(motion_data, weights, model__start_from=str(workdir)), tmp_path / "run")
    (tmp_path / "hf").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "hf" / name).write_text("{}")
    with pytest.raises(UserError, match="hf holds weights of another library, not a run: pass CLIP's"):
        inti_jax.load(tmp_path / "hf")
    with pytest.raises(UserError, match=r"that a run trained, not a CLIP: .*model\.start_from"):
        inti_jax.load_clip(small)
    with pytest.raises(UserError, match=r"that a run trained, not a CLIP: .*model\.start_from"):
        loop.train(settings_for(motion_data, small), tmp_path / "run")
    with pytest.raises(UserError, match=rf"is a run, not .*`python -m inti_jax\.convert {workdir} --out"):
        loop.train(settings_for(motion_data, workdir), tmp_path / "run")


def test_a_run_takes_no_other_weights(workdir, weights):
    with pytest.raises(UserError, match="has its own weights"):
        inti_jax.load(workdir, pretrained=weights)
