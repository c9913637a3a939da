"""Streamed predictions are those of the model on each window, and cost what the modules count."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import inti_jax
from inti_jax.config.backbones import BACKBONES
from inti_jax.errors import UsageError, UserError
from inti_jax.evaluation.classifier import VideoClassifier
from inti_jax.models import parameters, sliding
from inti_jax.runs import state
from inti_jax.streaming.engine import Stream
from tests.configs import SHALLOW, record, tiny
from tests.data import clips

# Folded, "linear" and "lora" are what "full" is.
METHODS = ("full", "aim", "st_adapter", "zero_i2v")
# By kind, its settings with one layer that compresses and with two.
COMPRESSIONS = {
    "none": ({}, {}),
    "inti": ({"after": (2,)}, {"after": (1, 2)}),
    "mean": ({"after": (1,)}, {"after": (1, 3)}),
    # The frames of a clip merge alike from the second block on, or each on its own in all blocks.
    "tome": ({"after": (2,), "matching": "clip", "r": 2}, {"r": 2}),
}
THREE = dataclasses.replace(SHALLOW, layers=3)


def classifier(seed=0, **changes):
    """A model as a run leaves it, with random parameters: also those that start at zero."""
    with mock.patch.dict(BACKBONES, tiny=THREE):
        settings = tiny(
            **({"model__pretrained": "none.safetensors", "data__resolution": 24} | changes),
            model__st_adapter__width=16,
        )
        run = record(settings)
        model = state.abstract_model(run, folded=True)
    rng = np.random.default_rng(seed)
    params = {
        path: jnp.asarray(path.endswith(".scale") + 0.1 * rng.standard_normal(shape.shape, np.float32))
        for path, shape in parameters.parameter_shapes(model).items()
    }
    return VideoClassifier(nnx.graphdef(model), params, run)


def compressed(kind, layers, **changes):
    settings = {"kind": kind, **COMPRESSIONS[kind][layers - 1]}
    return classifier(**{f"model__compression__{key}": value for key, value in settings.items()}, **changes)


def check(model, stream, predictions, video, starts):
    assert [found.start for found in predictions] == starts
    windows = np.stack([video[found.start : found.end : stream.stride] for found in predictions])
    expected = model(windows)
    np.testing.assert_allclose([found.logits for found in predictions], expected, atol=1e-5)
    probabilities = np.asarray(jax.nn.softmax(expected))
    np.testing.assert_allclose([found.probabilities for found in predictions], probabilities, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 1e-3  # windows differ


@pytest.mark.parametrize(
    ("method", "kind", "layers"),
    [
        (method, kind, 1 + (i + j) % 2)
        for i, method in enumerate(METHODS)
        for j, kind in enumerate(COMPRESSIONS)
    ]
    + [("linear", "inti", 2), ("lora", "inti", 2)],
)
def test_streamed_predictions_are_those_of_each_window(method, kind, layers):
    model = compressed(kind, layers, model__adaptation=method)
    stream, video = Stream(model, every=4), clips.moving_square(40, 24, 20)
    found = [each for part in np.split(video, [3, 4, 30]) for each in stream.push(part)]
    check(model, stream, found, video, [0, 8, 16, 24])


@pytest.mark.parametrize(("every", "starts"), [(2, [0, 4, 8, 12]), (6, [0, 12]), (12, [0, 24])])
def test_windows_start_every_so_many_frames(every, starts):
    model = compressed("inti", 1)
    stream, video = Stream(model, every), clips.moving_square(starts[-1] + 16, 24, 20)
    check(model, stream, stream.push(video), video, starts)


def test_a_window_is_half_past_the_one_before_it_unless_said_otherwise():
    assert Stream(compressed("inti", 2)).every == 4
    assert Stream(compressed("inti", 2, data__num_frames=12)).every == 8


def test_no_window_spans_frames_that_are_lost():
    model = compressed("inti", 1)
    stream, video = Stream(model, every=4, stride=1), clips.moving_square(40, 24, 20)
    found = stream.push(video[:11])
    stream.skip(3)
    check(model, stream, found + stream.push(video[14:]), video, [0, 14, 18, 22, 26, 30])


def test_the_resolution_may_change_and_each_frame_is_cropped_by_its_own():
    model = compressed("inti", 1)
    stream = Stream(model, every=4, stride=1)
    wide, high = clips.moving_square(4, 30, 60), clips.moving_square(4, 80, 40)
    assert stream.push(wide) == []
    (found,) = stream.push(high)
    cropped = np.concatenate([model.crop(part)[0][0] for part in (wide, high)])
    np.testing.assert_allclose(found.logits, model(cropped), atol=1e-5)


def test_labels_that_do_not_exclude_each_other_have_sigmoids():
    model = compressed("inti", 1, train__loss="binary_cross_entropy")
    (found,) = Stream(model, stride=1).push(clips.moving_square(8, 24, 20))
    np.testing.assert_allclose(found.probabilities, 1 / (1 + np.exp(-found.logits)), rtol=1e-5)


def test_what_is_kept_does_not_grow():
    stream = Stream(compressed("inti", 1), every=4, stride=1)
    frame = clips.moving_square(1, 24, 20)
    sizes = []
    for _ in range(5):
        for _ in range(8):
            stream.push(frame)
        sizes.append(sum(leaf.nbytes for leaf in jax.tree.leaves(jax.live_arrays())))
    assert sizes[1:] == sizes[1:2] * 4


def test_a_hop_costs_its_share_of_a_window_unless_frames_see_each_other():
    plain = parameters.merge(*model_of(compressed("inti", 2)))
    assert sliding.blocks_apart(plain) == 3
    assert sliding.hop_macs(plain, 8, 4, folded=True) == plain.macs(4, folded=True)
    assert sliding.hop_macs(plain, 8, 12) == plain.macs(8)
    over_time = parameters.merge(*model_of(compressed("inti", 2, model__adaptation="aim")))
    assert sliding.blocks_apart(over_time) is None
    assert sliding.hop_macs(over_time, 8, 4) == over_time.macs(8)
    convolved = parameters.merge(*model_of(compressed("inti", 2, model__adaptation="st_adapter")))
    assert sliding.blocks_apart(convolved) == 0
    assert sliding.hop_macs(convolved, 8, 4) == convolved.macs(8) - 4 * convolved.tower.embed_macs()
    alike = parameters.merge(*model_of(compressed("tome", 1)))
    assert sliding.blocks_apart(alike) == 1


def model_of(model):
    return model.graphdef, model.params


@pytest.mark.parametrize("every", [0, 2, 6])
def test_a_hop_that_splits_groups_is_refused(every):
    with pytest.raises(UsageError, match=rf"`every` is {every}: .* multiple of 4, since its compress"):
        Stream(compressed("inti", 2), every)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 8, 24, 20, 3), np.uint8), "in order"),
        (np.zeros((8, 24, 20, 3), np.float32), "uint8"),
        (np.zeros((8, 0, 20, 3), np.uint8), "0 x 20 pixels"),
    ],
)
def test_what_is_no_frames_is_refused(frames, message):
    with pytest.raises(UserError, match=message):
        Stream(compressed("inti", 1)).push(frames)


@pytest.mark.usefixtures("shallow")
def test_a_stream_of_a_run(trained_run):
    model, video = inti_jax.load(trained_run), clips.moving_square(32, 40, 32)
    stream = inti_jax.stream(trained_run, every=2)
    assert stream.stride == 2 and stream.labels == model.labels
    check(model, stream, stream.push(video), video, [0, 4, 8, 12, 16])
