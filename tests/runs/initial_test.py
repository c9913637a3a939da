"""A converted CLIP in the main job: zero-shot, trained on, and given back."""

import collections
import logging
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from flax import nnx

from inti_jax.config import ConfigError, Eval, Mesh
from inti_jax.config.backbones import CLIP_MEAN, CLIP_STD
from inti_jax.data import pipeline
from inti_jax.data.dataset import open_dataset
from inti_jax.distributed import sharding
from inti_jax.evaluation import evaluate
from inti_jax.models import parameters
from inti_jax.pretrained.clip_file import ClipFile
from inti_jax.pretrained.encoders import TextEncoder
from inti_jax.runs import checkpoint, initial, state, trained
from inti_jax.runs.backbone import find_backbone
from inti_jax.runs.record import Dataset, RunRecord
from inti_jax.runs.writers.jsonl import read_metrics
from inti_jax.training import loop, optim
from tests.commands import convert
from tests.configs import INTI, tiny
from tests.pretrained import checkpoints

pytestmark = pytest.mark.usefixtures("shallow", "unreported")

TEMPLATES = ("a photo of {}.", "the dog and {}")
TEXT = {"model__head__init": "text", "model__head__templates": TEMPLATES}


@pytest.fixture(scope="module")
def model():
    return checkpoints.huggingface_model("tiny", activation="gelu", layers=2, resolution=32)


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    """A tiny CLIP with random weights, converted."""
    directory = tmp_path_factory.mktemp("clip")
    checkpoints.write_huggingface(directory / "hf", model)
    assert convert(directory / "hf", "--out", directory / "clip.safetensors") == 0
    return directory / "clip.safetensors"


def record_of(settings, motion_data) -> RunRecord:
    dataset = open_dataset("motion_digits", motion_data, "val")
    return RunRecord(settings, Dataset.of(dataset), find_backbone(settings))


def start(settings, motion_data, sizes=Mesh(), devices=8):  # noqa: B008
    """The record, the mesh and the state before the first step."""
    record = record_of(settings, motion_data)
    mesh = sharding.make_mesh(sizes, jax.devices()[:devices])
    transform, _ = optim.make_optimizer(settings.train, 4)
    target = state.abstract_state(record, transform, mesh)
    return record, mesh, initial.initial_state(record, transform, target)


def zero_shot_reference(model, labels, frames):
    """transformers' probabilities for one video: its frames' features averaged, then as for an image."""
    texts = [template.format(label) for label in labels for template in TEMPLATES]
    tokens = checkpoints.tokenize(texts)["input_ids"]
    pixels = (frames / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    with torch.no_grad():
        images = torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2)
        feature = model.vision_model(images).pooler_output.mean(0)
        image = torch.nn.functional.normalize(model.visual_projection(feature), dim=0)
        prompts = model.text_projection(model.text_model(input_ids=tokens).pooler_output)
        prompts = torch.nn.functional.normalize(prompts, dim=-1).reshape(len(labels), len(TEMPLATES), -1)
        classes = torch.nn.functional.normalize(prompts.mean(1), dim=-1)
        return torch.softmax(model.logit_scale.exp() * classes @ image, 0).numpy()


def test_zero_shot_evaluation_is_clips(model, weights, motion_data, tmp_path):
    settings = tiny(motion_data, model__pretrained=str(weights), **TEXT)
    record, mesh, first = start(settings, motion_data, devices=1)
    dataset = open_dataset("motion_digits", motion_data, "val")
    graphdef = nnx.graphdef(state.abstract_model(record))
    found = evaluate.predict(
        evaluate.make_forward(graphdef, mesh), first.trainable, dataset, settings.data, Eval(batch=8), mesh
    )
    for index in range(3):
        frames = pipeline.load_views(dataset[index], settings.data, Eval())[0]
        expected = zero_shot_reference(model, dataset.labels, frames)
        np.testing.assert_allclose(found.probabilities[index], expected, atol=1e-4)

    evaluate.evaluate_run(settings, tmp_path / "zero")
    (figures,) = read_metrics(tmp_path / "zero")
    assert figures["step"] == 0 and figures["evaluated"] == 20
    assert figures["top1"] == np.mean(found.probabilities.argmax(1) == found.labels)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_linear_probe_leaves_the_backbone_as_it_was(weights, motion_data, tmp_path, dtype):
    settings = tiny(
        motion_data, **INTI, model__pretrained=str(weights), model__adaptation="linear",
        model__frozen_dtype=dtype,
    )  # fmt: skip
    loop.train(settings, tmp_path)
    record = RunRecord.read(tmp_path)
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    params = trained.load_run(record, tmp_path, mesh, 4).params
    file = ClipFile(weights)
    assert record.backbone.sha256 == file.hash and record.backbone.numerics.activation == "gelu"
    for path, value in params.items():
        if path.startswith("tower."):
            assert value.dtype == jnp.dtype(dtype), path
            np.testing.assert_array_equal(value, file.read(path).astype(value.dtype), err_msg=path)
    _, _, before = start(settings, motion_data, devices=1)
    assert np.abs(params["head.kernel"] - before.trainable["head.kernel"]).max() > 0
    assert np.abs(params["compressors.0.out.kernel"]).max() > 0
    # Nothing of the optimizer's is about the backbone.
    transform, _ = optim.make_optimizer(settings.train, 4)
    target = state.abstract_state(record, transform, mesh)
    sizes = sum(leaf.size for leaf in jax.tree.leaves(target.opt_state))
    assert sizes < 2.1 * sum(leaf.size for leaf in target.trainable.values())
    restored, position = checkpoint.restore(tmp_path, 4, target)
    assert position["next_step"] == 4 and int(restored.step) == 4


def test_the_whole_model_trains_on_from_the_weights(
    weights, motion_data, tmp_path, caplog, capsys, monkeypatch
):
    settings = tiny(motion_data, **INTI, **TEXT, model__pretrained=str(weights))
    monkeypatch.setattr(logging.getLogger("inti_jax"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="inti_jax"):
        loop.train(settings, tmp_path)
    file = ClipFile(weights)
    towers = sum(name.startswith("tower.") for name in file)
    # The head's three arrays are from the file too, by way of its text tower; the compressor's are new.
    shapes = parameters.parameter_shapes(state.abstract_model(RunRecord.read(tmp_path)))
    new = sum(path.startswith("compressors.") for path in shapes)
    assert f"{towers + 3} loaded, {new} new, 0 dropped" in caplog.text
    assert "the names of 10 classes" in caplog.text
    assert read_metrics(tmp_path)[-1]["split"] == "val"
    # And the tower goes back to where CLIP's weights came from, with the projection.
    out = tmp_path / "tower.safetensors"
    assert convert(tmp_path, "--to", "openai", "--out", out) == 0
    left = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("left out"))
    assert "head.classes.kernel, head.logit_scale" in left and "projection" not in left
    assert convert(tmp_path, "--to", "huggingface", "--out", tmp_path / "tower") == 0
    theirs = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path / "tower").state_dict()
    again = tmp_path / "again.safetensors"
    assert convert(out, "--out", again, "--activation", "gelu", "--head_size", "24") == 0
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    params = trained.load(tmp_path, mesh).params
    given_back = ClipFile(again)
    params["projection.kernel"] = params.pop("head.projection.kernel")
    assert set(given_back) == {path for path in params if path.startswith(("tower.", "projection."))}
    for path in given_back:
        np.testing.assert_array_equal(given_back.read(path), params[path], err_msg=path)
        assert path.endswith("bias") or np.abs(params[path] - file.read(path)).max() > 0, path
    np.testing.assert_array_equal(theirs["visual_projection.weight"].T, params["projection.kernel"])


def test_a_text_head_reads_no_whole_image_tower(weights, motion_data, monkeypatch):
    settings = tiny(motion_data, model__pretrained=str(weights), **TEXT)
    read = collections.defaultdict(list)
    encoders: weakref.WeakSet[TextEncoder] = weakref.WeakSet()
    whole = ClipFile.read

    class Noted(TextEncoder):
        def __init__(self, file):
            super().__init__(file)
            encoders.add(self)

    def noting(self, name, index=()):
        part = whole(self, name, index)
        read[name].append(part.size)
        assert not (name.startswith("tower.") and encoders), "both towers at once"
        return part

    monkeypatch.setattr(ClipFile, "read", noting)
    monkeypatch.setattr(initial, "TextEncoder", Noted)
    _, _, first = start(settings, motion_data, sizes=Mesh(data=1, fsdp=8))
    file = ClipFile(weights)
    for path, value in first.trainable.items():
        if path.startswith("tower.") and not path.endswith("positional_embedding"):
            assert set(read[path]) == {value.addressable_shards[0].data.size}, path
    assert all(len(sizes) == 1 for name, sizes in read.items() if name.startswith("text."))
    # The projection is in slices as well, and what the head shares with CLIP is the file's, bit for bit.
    projection = first.trainable["head.projection.kernel"]
    assert set(read["projection.kernel"]) == {projection.addressable_shards[0].data.size}
    monkeypatch.undo()
    np.testing.assert_array_equal(projection, file.read("projection.kernel"))
    np.testing.assert_array_equal(first.trainable["head.logit_scale"], file.read("logit_scale"))


def test_weights_that_are_not_converted_yet_are_the_same_once_they_are(weights, motion_data):
    converted, first = (
        start(tiny(motion_data, model__pretrained=str(path), **TEXT), motion_data, devices=1)[::2]
        for path in (weights, weights.parent / "hf")
    )
    assert converted[0].backbone == first[0].backbone
    for path, value in converted[1].trainable.items():
        np.testing.assert_array_equal(value, first[1].trainable[path], err_msg=path)


def test_every_device_holds_only_its_shard(weights, motion_data):
    settings = tiny(motion_data, model__pretrained=str(weights), model__adaptation="linear")
    _, _, first = start(settings, motion_data, sizes=Mesh(data=1, fsdp=8))
    file = ClipFile(weights)
    held, whole = 0, 0
    for path, value in first.frozen.items():
        np.testing.assert_array_equal(value, file.read(path), err_msg=path)
        held += value.addressable_shards[0].data.size
        whole += value.size
    assert held < whole / 6  # all but what is too small to slice


def test_another_resolution_resamples_the_positions(weights, motion_data):
    settings = tiny(motion_data, model__pretrained=str(weights), data__resolution=48)
    record, _, first = start(settings, motion_data, devices=1)
    assert first.trainable["tower.positional_embedding"].shape == (37, 96)
    model = state.abstract_model(record)
    assert model.tower.grid == (6, 6)
    video = jax.ShapeDtypeStruct((1, 8, 48, 48, 3), jnp.uint8)
    graphdef = nnx.graphdef(model)
    logits = jax.eval_shape(
        lambda params, video: parameters.merge(graphdef, params)(video), first.trainable, video
    )
    assert logits.shape == (1, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__pretrained": "absent.safetensors"}, "there is no such file"),
        ({"model__pretrained": "configs"}, "configs has no config.json.* `python -m inti_jax.convert` wrote"),
        (
            {"model__backbone": "clip_vit_b16", "data__resolution": 224},
            'is clip_vit_b16, but .* holds tiny: set it to "auto"',
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, motion_data, monkeypatch, changes, message):
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(ConfigError, match=message) as caught:
        record_of(tiny(motion_data, **({"model__pretrained": str(weights)} | changes)), motion_data)
    assert "\n" not in str(caught.value)


def test_a_backbone_without_a_name_is_put_in_words(motion_data, tmp_path):
    checkpoints.write_huggingface(tmp_path / "hf", checkpoints.huggingface_model())
    out = tmp_path / "f.safetensors"
    assert convert(tmp_path / "hf", "--out", out) == 0
    with pytest.raises(
        ConfigError,
        match='holds a ViT of width 128 with 2 layers, 2 heads and patches of 16: set it to "auto"',
    ):
        record_of(tiny(motion_data, model__pretrained=str(out)), motion_data)


def test_a_head_from_names_needs_a_text_tower(model, motion_data, tmp_path):
    names = checkpoints.openai_state_dict(model)
    vision = {name: value for name, value in names.items() if name.startswith("visual.")}
    torch.save(vision, tmp_path / "v.pt")
    out = tmp_path / "v.safetensors"
    assert convert(tmp_path / "v.pt", "--out", out, "--head_size", "24") == 0
    with pytest.raises(ConfigError, match="has no text tower"):
        record_of(tiny(motion_data, model__pretrained=str(out), **TEXT), motion_data)


def test_identity_is_enough_to_evaluate(weights, motion_data):
    """No optimizer's state is made for a model that only answers."""
    record = record_of(tiny(motion_data, model__pretrained=str(weights)), motion_data)
    target = state.abstract_state(record, optax.identity(), sharding.make_mesh(Mesh()))
    assert jax.tree.leaves(target.opt_state) == []
