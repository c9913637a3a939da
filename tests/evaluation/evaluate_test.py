import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image

import inti_jax
from inti_jax import predict
from inti_jax.config import Eval, Mesh
from inti_jax.data.codec.decode import DecodeError
from inti_jax.data.dataset import open_dataset
from inti_jax.distributed import sharding
from inti_jax.errors import UserError
from inti_jax.evaluation import evaluate
from inti_jax.evaluation.classifier import VideoClassifier
from inti_jax.models import parameters
from inti_jax.models.rngs import make_rngs
from inti_jax.runs import state, trained
from inti_jax.runs.record import RunRecord
from inti_jax.runs.writers.jsonl import read_metrics
from tests.configs import INTI, record, tiny
from tests.cost.compiled import initialize

pytestmark = pytest.mark.usefixtures("shallow")


class WithoutVideo3:
    """A dataset whose video 3 was damaged after it was prepared."""

    def __init__(self, dataset):
        self._dataset = dataset

    def __len__(self):
        return len(self._dataset)

    def __getitem__(self, index):
        if index == 3:
            raise DecodeError("it does not decode")
        return self._dataset[index]


@pytest.fixture(scope="module")
def model():
    """A random model: its graph and its parameters, on the host."""
    settings = tiny(**INTI)
    graphdef, params = nnx.split(state.build_model(record(settings), make_rngs(3)))
    return graphdef, {path: np.asarray(leaf) for path, leaf in parameters.flatten(params).items()}


def predictions(model, motion_data, settings, *, devices=1, source=None):
    graphdef, params = model
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:devices])
    source = source or open_dataset("motion_digits", motion_data, "val")
    data = tiny(motion_data).data
    params = jax.device_put(params, sharding.replicated(mesh))
    return evaluate.predict(evaluate.make_forward(graphdef, mesh), params, source, data, settings, mesh)


@pytest.mark.parametrize(("batch", "devices"), [(20, 1), (7, 1), (8, 8), (16, 4), (64, 2)])
def test_every_video_comes_once_whatever_the_batch_and_the_devices(model, motion_data, batch, devices):
    expected = predictions(model, motion_data, Eval(batch=10))
    found = predictions(model, motion_data, Eval(batch=batch), devices=devices)
    assert found.index.tolist() == list(range(20)) and found.missing.tolist() == []
    np.testing.assert_allclose(found.views, expected.views, atol=1e-6)
    np.testing.assert_allclose(found.probabilities.sum(-1), 1, atol=1e-5)


def test_views_are_averaged_and_the_middle_one_is_the_single_view(model, motion_data):
    three = predictions(model, motion_data, Eval(batch=10, clips=3))
    assert three.views.shape == (20, 3, 10)
    np.testing.assert_allclose(three.probabilities, three.views.mean(1))
    assert np.abs(three.views[:, 0] - three.views[:, 2]).max() > 1e-4
    one = predictions(model, motion_data, Eval(batch=10))
    np.testing.assert_allclose(three.views[:, 1], one.probabilities, atol=1e-6)


def test_a_video_that_does_not_decode_is_missing_and_never_replaced(model, motion_data):
    source = WithoutVideo3(open_dataset("motion_digits", motion_data, "val"))
    found = predictions(model, motion_data, Eval(batch=8), source=source)
    assert found.missing.tolist() == [3]
    assert found.index.tolist() == [i for i in range(20) if i != 3]
    whole = predictions(model, motion_data, Eval(batch=8))
    np.testing.assert_allclose(found.views, whole.views[found.index], atol=1e-6)

    graphdef, params = model
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    params = jax.device_put(params, sharding.replicated(mesh))
    figures, _ = evaluate.evaluate(
        evaluate.make_forward(graphdef, mesh), params, source, tiny(motion_data).data, Eval(batch=8), mesh
    )
    assert figures["evaluated"] == 19 and figures["missing"] == 1
    correct = found.probabilities.argmax(1) == found.labels
    assert figures["top1"] == pytest.approx(correct.mean())


def test_probabilities_that_are_not_finite_are_an_error_not_an_accuracy(model, motion_data):
    graphdef, params = model
    broken = params | {"head.bias": np.full(10, np.nan, np.float32)}
    with pytest.raises(UserError, match="not finite"):
        predictions((graphdef, broken), motion_data, Eval(batch=8))


def test_order_blind_models_stay_under_the_ceiling(motion_data):
    """The dataset's promise: without the order of frames, right for one of each two videos at most."""
    graphdef, params = nnx.split(state.build_model(record(tiny()), make_rngs(0)))
    found = predictions((graphdef, parameters.flatten(params)), motion_data, Eval(batch=10))
    partners = found.probabilities.reshape(-1, 2, 10)
    np.testing.assert_allclose(partners[:, 0], partners[:, 1], atol=1e-5)


# On a run's directory.


@pytest.fixture
def video_files(motion_data, tmp_path):
    dataset = open_dataset("motion_digits", motion_data, "val")
    paths = [tmp_path / f"{index}.mp4" for index in range(5)]
    for index, path in enumerate(paths):
        path.write_bytes(dataset[index].video)
    return paths


def test_predict_says_what_the_evaluation_says(trained_run, motion_data, video_files):
    run = RunRecord.read(trained_run)
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    params = trained.load(trained_run, mesh).params
    graphdef = nnx.graphdef(state.abstract_model(run))
    expected = evaluate.predict(
        evaluate.make_forward(graphdef, mesh),
        params,
        open_dataset("motion_digits", motion_data, "val"),
        run.config.data,
        run.config.eval,
        mesh,
    )
    results = predict.predict_files(trained_run, video_files, topk=10)
    for index, result in enumerate(results):
        found = {entry["label"]: entry["probability"] for entry in result["predictions"]}
        got = [found[label] for label in run.dataset.labels]
        np.testing.assert_allclose(got, expected.probabilities[index], atol=1e-6)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_predict_as_a_command(trained_run, video_files, tmp_path):
    empty, text = tmp_path / "empty.mp4", tmp_path / "text.mp4"
    empty.touch()
    text.write_text("no video")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(video_files[0].read_bytes()[:700])
    bad = [empty, text, cut, tmp_path / "absent.mp4"]
    command = [sys.executable, "-m", "inti_jax.predict", "--checkpoint", trained_run, "--json", "--topk", "2"]
    process = subprocess.run([*command, video_files[0], *bad], capture_output=True, text=True)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    good, *failed = json.loads(process.stdout)
    assert len(good["predictions"]) == 2
    assert [Path(result["video"]) for result in failed] == bad
    assert [bool(result["error"]) for result in failed] == [True] * 4
    assert "4 of 5 videos could not be labelled" in process.stderr.splitlines()[-1]


def test_load_gives_a_function_of_frames(trained_run, motion_data):
    model = inti_jax.load(trained_run)
    video = np.random.default_rng(0).integers(0, 256, (2, 8, 32, 32, 3), np.uint8)
    logits = model(video)
    assert logits.shape == (2, 10) and model.features(video).shape == (2, 96)
    np.testing.assert_allclose(model(video[1]), logits[1], atol=1e-5)
    assert model(video[0, :2]).shape == (10,)  # another T
    assert model(np.zeros((4, 48, 64, 3), np.uint8)).shape == (10,)  # another size
    for wrong in (video[0, :3], video.astype(np.float32), video[0, 0]):
        with pytest.raises(UserError):
            model(wrong)


def test_a_model_takes_a_multiple_of_its_own_ratio():
    changes = {"model__compression__group": 3, "model__compression__after": (1, 2), "data__num_frames": 9}
    settings = tiny(**INTI | changes)
    graphdef, params = nnx.split(initialize(lambda: state.build_model(record(settings), make_rngs(0))))
    model = VideoClassifier(graphdef, parameters.flatten(params), record(settings))
    with pytest.raises(UserError, match="takes a multiple of 9 frames, not 8"):
        model(np.zeros((8, 32, 32, 3), np.uint8))
    assert model(np.zeros((0, 9, 32, 32, 3), np.uint8)).shape == (0, 10)


def test_load_takes_videos_in_any_form(trained_run):
    model = inti_jax.load(trained_run)
    video = np.random.default_rng(0).integers(0, 256, (2, 40, 48, 3), np.uint8)
    expected = model(video)
    pictures = [Image.fromarray(frame) for frame in video]
    for form in (jnp.asarray(video), torch.from_numpy(video), list(video), pictures):
        np.testing.assert_array_equal(model(form), expected)
    several = [video, torch.from_numpy(video[:, 4:36, 8:40].copy())]  # of different sizes
    np.testing.assert_allclose(model(several)[0], expected, atol=1e-5)
    none = np.zeros((0, 8, 32, 32, 3), np.uint8)
    assert model(none).shape == (0, 10) and model.features(none).shape == (0, 96)
    for wrong, said in (
        ("clip.mp4", r"inti_jax\.predict"),
        ([video, video[:1]], "a multiple of|as many frames"),
        (video[:, :0], "0 x 48 pixels"),
        (video[:0], "frames, not 0"),
    ):
        with pytest.raises(UserError, match=said):
            model(wrong)


def test_eval_mode_adds_a_record_and_refuses_another_model(trained_run, motion_data, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained_run, workdir)
    settings = dataclasses.replace(RunRecord.read(workdir).config, eval=Eval(batch=16, clips=3))
    evaluate.evaluate_run(settings, workdir)
    records = [r for r in read_metrics(workdir) if r["split"] == "val"]
    assert [r["views"] for r in records] == [2, 3] and records[1]["step"] == 4
    events = b"".join(path.read_bytes() for path in (workdir / "tensorboard").glob("*"))
    assert b"val/top1" in events and b"val_3_x_1_views/top1" in events  # two curves
    with pytest.raises(UserError, match=r"checkpoints of another run, where `model\.compression"):
        evaluate.evaluate_run(tiny(motion_data), workdir)
    with pytest.raises(UserError, match="elsewhere holds no finished checkpoint"):
        evaluate.evaluate_run(settings, tmp_path / "elsewhere")
