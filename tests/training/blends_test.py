"""The figures of the weights by which frames are blended, and their records."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from inti_jax.config import Mesh
from inti_jax.config.backbones import BACKBONES
from inti_jax.distributed import sharding
from inti_jax.models import attribution, parameters
from inti_jax.models.rngs import make_rngs
from inti_jax.runs import state
from inti_jax.runs.writers.jsonl import read_metrics
from inti_jax.training import blends
from tests.configs import record, tiny
from tests.cost.compiled import initialize

# The mean and the spread of weights over videos, frames and patches, and what of them is far from equal.
MADE_UP = np.array([[0.5, 0.5], [0.61, 0.39], [0.59, 0.41], [0, 1]], np.float32)[None, None]


def of(found):
    return {name: float(value) for name, value in found.items()}


def test_a_hand_made_distribution_has_its_figures():
    found = of(blends.figures(jnp.asarray(MADE_UP), jnp.ones(1, bool)))
    assert found["mean_1"] == pytest.approx(0.425) and found["mean_2"] == pytest.approx(0.575)
    assert found["std_1"] == pytest.approx(MADE_UP[..., 0].std()) == pytest.approx(found["std_2"])
    assert found["far"] == attribution.far_from_equal(MADE_UP) == 0.5
    assert list(found) == ["mean_1", "std_1", "mean_2", "std_2", "far"]


def test_only_videos_that_decoded_count():
    with_garbage = jnp.concatenate([jnp.asarray(MADE_UP), jnp.full_like(MADE_UP, jnp.nan)])
    found = blends.figures(with_garbage, jnp.array([True, False]))
    assert of(found) == of(blends.figures(jnp.asarray(MADE_UP), jnp.ones(1, bool)))
    assert all(np.isnan(value) for value in of(blends.figures(with_garbage, jnp.zeros(2, bool))).values())


def compressed(kind="inti", **changes):
    """A model of two layers, each of groups of three frames."""
    return tiny(
        model__compression__kind=kind,
        model__compression__group=3,
        model__compression__after=(1, 2),
        data__num_frames=9,
        **changes,
    )


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    mask = np.ones(8, bool)
    mask[[2, 5]] = False
    return {"video": rng.integers(0, 256, (8, 9, 32, 32, 3), np.uint8), "mask": mask}


@pytest.fixture(scope="module")
def model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", dataclasses.replace(BACKBONES["tiny"], layers=3))
        return initialize(lambda: state.build_model(record(compressed()), make_rngs(0)))


def measured(model, batch, devices):
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:devices])
    graphdef, params = nnx.split(model)
    params = jax.device_put(parameters.flatten(params), sharding.replicated(mesh))
    placed = sharding.place_batch(batch, mesh)
    found = blends.compile_figures(graphdef, mesh)(params, placed["video"], placed["mask"])
    return {block: of(figures) for block, figures in found.items()}


def test_a_layer_starts_as_the_mean(model, batch):
    found = measured(model, batch, 1)
    assert list(found) == [1, 2]
    for figures in found.values():
        assert figures["far"] == 0 and max(figures[f"std_{frame}"] for frame in (1, 2, 3)) < 1e-7
        assert [figures[f"mean_{frame}"] for frame in (1, 2, 3)] == pytest.approx([1 / 3] * 3)


def test_the_figures_are_of_all_devices_and_of_each_layer(model, batch):
    for number, layer in enumerate(model.compressors):
        kernel = np.random.default_rng(number).standard_normal(layer.out.kernel.shape)
        layer.out.kernel = nnx.Param(jnp.asarray(0.1 * (number + 1) * kernel, jnp.float32))
    one, eight = measured(model, batch, 1), measured(model, batch, 8)
    graphdef, params = nnx.split(model)
    _, trace = jax.jit(lambda params, video: nnx.merge(graphdef, params).trace(video))(params, batch["video"])
    steps = [step for step in trace.steps if hasattr(step, "weights")]
    for block, step in zip((1, 2), steps, strict=True):
        patches = np.asarray(step.weights)[batch["mask"], :, 1:]  # without the class token
        assert patches.shape == (6, 9 // 3**block, 16, 3)
        expected = {"far": attribution.far_from_equal(patches)}
        for frame in range(3):
            expected[f"mean_{frame + 1}"] = patches[..., frame].mean()
            expected[f"std_{frame + 1}"] = patches[..., frame].std()
        assert expected["far"] > 0.05 and expected["std_1"] > 0.01
        assert one[block] == pytest.approx(expected, abs=1e-5)
        assert eight[block] == pytest.approx(one[block], abs=1e-5)


def test_of_a_larger_batch_a_quarter_is_measured(model, batch):
    video = np.repeat(batch["video"], 4, axis=0)  # each of the eight videos, then three that are black
    video.reshape(8, 4, *video.shape[1:])[:, 1:] = 0
    larger = {"video": video, "mask": np.repeat(batch["mask"], 4)}
    expected = measured(model, batch, 1)
    for devices in (1, 8):
        for block, figures in measured(model, larger, devices).items():
            assert figures == pytest.approx(expected[block], abs=1e-5)


@pytest.mark.parametrize(
    ("batch", "shards", "step"), [(32, 1, 4), (32, 8, 4), (32, 16, 2), (32, 32, 1), (24, 1, 3), (8, 1, 1)]
)
def test_every_device_measures_equally_many(batch, shards, step):
    assert blends._step(batch, shards) == step


@pytest.mark.parametrize(
    ("kind", "learned"), [("inti", True), ("static", True), ("mean", False), ("drop", False)]
)
def test_only_weights_that_train_are_measured(kind, learned):
    assert blends.learned(state.abstract_model(record(compressed(kind)))) == learned


def test_a_run_records_them_with_its_steps(trained_run):
    records = read_metrics(trained_run)
    found = [each for each in records if each["split"] == "blends"]
    assert [each["step"] for each in found] == [each["step"] for each in records if each["split"] == "train"]
    assert {each["block"] for each in found} == {1}
    assert all(each["mean_1"] + each["mean_2"] == pytest.approx(1) for each in found)
    assert found[-1]["std_1"] > 0
