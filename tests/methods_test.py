"""Every adaptation method with every compressor: trains what it says, is evaluated, saved and restored.

Other backbones come with one compressor here, and with all in `python -m tests.benchmarks.backbone_grid`.
"""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from inti_jax import config
from inti_jax.config import Mesh
from inti_jax.config.backbones import BACKBONES
from inti_jax.distributed import sharding
from inti_jax.evaluation.evaluate import make_forward
from inti_jax.models import parameters
from inti_jax.runs import checkpoint, initial, state
from inti_jax.runs.backbone import find_backbone
from inti_jax.runs.checkpoint import CheckpointManager
from inti_jax.training import optim, train_step
from tests.configs import FAMILIES, SHALLOW, record, tiny
from tests.pretrained.weights import write_tiny

METHODS = ("full", "linear", "aim", "st_adapter", "zero_i2v", "lora")
COMPRESSIONS = ("none", "inti", "mean", "static", "drop", "tome")
FRAMES = (4, 8, 16)
# What trains, by the first part of the path and, in the tower, by the module.
TRAINS = {
    "full": {"tower", "compressors", "head"},
    "linear": {"compressors", "head"},
    "aim": {"adapters", "temporal", "tower.ln_post", "compressors", "head"},
    "st_adapter": {"adapters", "compressors", "head"},
    "zero_i2v": {"adapters", "temporal", "tower.ln_post", "compressors", "head"},
    "lora": {"adapters", "compressors", "head"},
}


pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("weights") / "clip.safetensors")


def make_settings(weights, method, compression, **changes):
    return tiny(
        model__pretrained=str(weights),
        model__adaptation=method,
        model__st_adapter__width=16,
        model__compression__kind=compression,
        model__compression__after=() if compression in ("none", "tome") else (1,),
        model__compression__r=2,
        train__global_batch=4,
        train__warmup_fraction=0.0,
        **changes,
    )


def start(settings, mesh=None):
    run = record(settings, backbone=find_backbone(settings))
    mesh = mesh or sharding.make_mesh(Mesh(), jax.devices()[:1])
    transform, schedule = optim.make_optimizer(settings.train, 4)
    target = state.abstract_state(run, transform, mesh)
    graphdef = nnx.graphdef(state.abstract_model(run))
    step = train_step.compile_step(settings, graphdef, transform, schedule, target, mesh)
    return step, initial.initial_state(run, transform, target), target, graphdef, mesh


def make_batch(mesh, data):
    rng = np.random.default_rng(0)
    rows = {
        "video": rng.integers(0, 256, (4, data.num_frames, *data.height_width, 3), np.uint8),
        "label": rng.integers(0, 10, 4).astype(np.int32),
        "mask": np.ones(4, bool),
        "index": np.arange(4, dtype=np.int32),
    }
    return sharding.place_batch(rows, mesh)


# Every method with every compressor once. Each method, and each compressor, comes with all numbers of frames.
COMBINATIONS = [
    (method, compression, FRAMES[(i + j) % 3])
    for i, method in enumerate(METHODS)
    for j, compression in enumerate(COMPRESSIONS)
]


@pytest.mark.parametrize(("method", "compression", "frames"), COMBINATIONS)
def test_it_trains_what_it_says_and_is_evaluated_and_restored(weights, tmp_path, method, compression, frames):
    check(make_settings(weights, method, compression, data__num_frames=frames), tmp_path)


@pytest.mark.parametrize(
    ("family", "method", "compression"),
    [
        ("clip", "zero_i2v", "inti"),
        ("dinov2", "aim", "inti"),
        ("dinov2", "st_adapter", "inti"),
        ("dinov2", "lora", "tome"),
        ("siglip", "full", "inti"),
        ("siglip", "aim", "tome"),
        ("patches", "full", "inti"),
        ("patches", "st_adapter", "tome"),
    ],
)
def test_other_backbones_and_shapes_are_trained_evaluated_and_restored(
    tmp_path, family, method, compression, monkeypatch
):
    size = dataclasses.replace(SHALLOW, **FAMILIES[family])
    monkeypatch.setitem(BACKBONES, "tiny", size)
    weights = write_tiny(tmp_path / "weights.safetensors", image=size)
    check(
        make_settings(weights, method, compression, data__num_frames=4, data__resolution=(24, 40)), tmp_path
    )


def check(settings, directory):
    """Train two steps, evaluate, save and restore. Return the losses of the steps."""
    method = settings.model.adaptation
    step, first, target, graphdef, mesh = start(settings)
    before = jax.device_get({**first.trainable, **first.frozen})
    batch = make_batch(mesh, settings.data)
    current, losses = first, []
    for _ in range(2):
        current, metrics = step(current, batch)
        losses.append(float(metrics["loss"]))
        assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
    after = jax.device_get({**current.trainable, **current.frozen})

    declared = {path for path in before if _module(path) in TRAINS[method] or method == "full"}
    assert current.trainable.keys() == declared
    for path in before:
        if path not in declared:
            np.testing.assert_array_equal(after[path], before[path], err_msg=path)
    moved = {path for path in declared if np.abs(after[path] - before[path]).max() > 0}
    assert {_module(path) for path in moved} >= {_module(path) for path in declared} - {"tower"}
    # Moments are kept of nothing else.
    moments = sum(leaf.size for leaf in jax.tree.leaves(current.opt_state))
    assert moments <= 2 * sum(leaf.size for leaf in current.trainable.values()) + 10

    views = {**batch, "video": batch["video"][:, None], "missing": ~batch["mask"]}
    probabilities = make_forward(graphdef, mesh)({**current.trainable, **current.frozen}, views)
    np.testing.assert_allclose(probabilities["values"].sum(-1), 1, atol=1e-5)
    with CheckpointManager(directory, config.Checkpoint(), start=None) as checkpoints:
        checkpoints.save(2, current, {"next_step": 2, "bad": 0})
    restored, _ = checkpoint.restore(directory, 2, target)
    jax.tree.map(np.testing.assert_array_equal, restored, current)
    return losses


@pytest.mark.parametrize("temporal", ["attention", "conv", "shift"])
@pytest.mark.parametrize("method", ["linear", "lora"])  # and with "full" in tests/models/parity_test.py
def test_temporal_modules_go_with_methods_that_have_none(weights, method, temporal):
    settings = make_settings(weights, method, "inti", model__temporal=temporal, data__num_frames=4)
    step, first, *_, mesh = start(settings)
    after, metrics = step(first, make_batch(mesh, settings.data))
    assert np.isfinite(metrics["loss"])
    if temporal != "shift":
        assert any(path.startswith("adapters.") for path in after.trainable)


@pytest.mark.parametrize(
    "settings",
    [
        {"model__drop_path": 0.4},
        {"model__head__dropout": 0.5},
        {"model__adaptation": "aim", "model__drop_path": 0.4},
        {"model__adaptation": "zero_i2v", "model__zero_i2v__dropout": 0.3},
    ],
    ids=str,
)
def test_dropout_changes_training_by_the_step_and_evaluation_not_at_all(weights, settings):
    settings = make_settings(weights, settings.pop("model__adaptation", "full"), "none", **settings)
    _, first, _, graphdef, mesh = start(settings)
    params = {**first.trainable, **first.frozen}
    # What starts at zero would hide what is dropped.
    rng = np.random.default_rng(0)
    params = {
        path: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32) if "adapters" in path else leaf
        for path, leaf in params.items()
    }
    video = make_batch(mesh, dataclasses.replace(settings.data, num_frames=4))["video"]
    logits = jax.jit(lambda key: parameters.merge(graphdef, params)(video, key))
    first_step, again, second_step = (logits(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first_step, again)
    assert np.abs(first_step - second_step).max() > 1e-4
    assert parameters.merge(graphdef, params).random
    plain = jax.jit(lambda: parameters.merge(graphdef, params)(video))()
    assert np.abs(plain - first_step).max() > 1e-4


def _module(path):
    return "tower.ln_post" if path.startswith("tower.ln_post.") else path.partition(".")[0]
