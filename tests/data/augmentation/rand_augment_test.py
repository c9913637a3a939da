import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from inti_jax import config
from inti_jax.data.augmentation import colour, rand_augment
from inti_jax.data.augmentation.rand_augment import OPERATIONS

FILL = (123, 117, 104)  # 255 times CLIP's mean
VALUES = np.arange(256)
GREYS = VALUES.astype(np.uint8).repeat(3).reshape(1, 16, 16, 3)


def _frames(seed=0, shape=(3, 17, 23)):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def _apply(frames, seed=0, **settings):
    return rand_augment.rand_augment(frames, np.random.default_rng(seed), config.RandAugment(**settings))


def _of_greys(name, level):
    return OPERATIONS[name](GREYS, level)[0, ..., 0].ravel()


@pytest.mark.parametrize("sense", [-1, 1])
def test_tables_at_magnitude_7(sense):
    np.testing.assert_array_equal(_of_greys("invert", 0.7 * sense), 255 - VALUES)
    np.testing.assert_array_equal(_of_greys("posterize", 0.7 * sense), VALUES & 0b11000000)
    np.testing.assert_array_equal(
        _of_greys("solarize", 0.7 * sense), [value if value < 77 else 255 - value for value in VALUES]
    )
    np.testing.assert_array_equal(
        _of_greys("solarize_add", 0.7 * sense), [value + 77 if value < 128 else value for value in VALUES]
    )


def test_tables_at_the_ends():
    np.testing.assert_array_equal(_of_greys("posterize", 0.0), VALUES & 0b11110000)
    np.testing.assert_array_equal(_of_greys("posterize", 1.0), VALUES & 0b10000000)
    np.testing.assert_array_equal(_of_greys("solarize", 1.0), 255 - VALUES)
    np.testing.assert_array_equal(
        _of_greys("solarize_add", 1.0), [min(value + 110, 255) if value < 128 else value for value in VALUES]
    )


@pytest.mark.parametrize(("level", "factor"), [(0.7, 1.63), (-0.7, 0.37), (-1.0, 0.1), (1.0, 1.9)])
def test_enhancements_have_the_factors_of_the_increasing_family(level, factor):
    frames = _frames()
    for name, enhance in (
        ("saturation", ImageEnhance.Color),
        ("contrast", ImageEnhance.Contrast),
        ("brightness", ImageEnhance.Brightness),
        ("sharpness", ImageEnhance.Sharpness),
    ):
        for result, frame in zip(OPERATIONS[name](frames, level), frames, strict=True):
            np.testing.assert_array_equal(result, np.asarray(enhance(Image.fromarray(frame)).enhance(factor)))


def test_autocontrast_stretches_each_channel_of_each_frame():
    frames = _frames(shape=(2, 20, 20)) // np.array([2, 3, 4], np.uint8) + np.array([20, 5, 60], np.uint8)
    frames[1] //= 2
    low, high = (limit(axis=(1, 2), keepdims=True).astype(float) for limit in (frames.min, frames.max))
    expected = (frames - low) * 255 / (high - low)
    assert abs(OPERATIONS["autocontrast"](frames, 0.7) - expected).max() <= 1


def test_equalize_gives_each_channel_of_each_frame_a_flat_histogram():
    frames = (_frames(shape=(2, 256, 256)).astype(int) ** 2 // 255).astype(np.uint8)  # mostly dark
    frames[1] //= 3
    result = OPERATIONS["equalize"](frames, 0.7)
    for frame, equal in zip(frames, result, strict=True):
        for channel in range(3):
            below = np.searchsorted(np.sort(frame[..., channel], axis=None), frame[..., channel])
            assert abs(equal[..., channel] - below / below.max() * 255).max() < 2


# Where a point of the result comes from, about the centres of pixels; the frame is 40 high and 60 wide.
def _rotated(x, y):
    cos, sin = math.cos(math.radians(21)), math.sin(math.radians(21))
    x, y = x - 30, y - 20
    return cos * x - sin * y + 30, sin * x + cos * y + 20  # counterclockwise, y grows downwards


SOURCES = {
    "rotate": _rotated,
    "shear_x": lambda x, y: (x + 0.21 * y, y),
    "shear_y": lambda x, y: (x, y + 0.21 * x),
    "translate_x": lambda x, y: (x + 19, y),  # 0.7 * 0.45 * 60 = 18.9
    "translate_y": lambda x, y: (x, y + 13),  # 0.7 * 0.45 * 40 = 12.6
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("sense", [-1, 1])
def test_geometry_at_magnitude_7_and_its_fill(name, sense):
    rows, columns = np.mgrid[:40, :60]
    frame = np.stack([4 * columns, 6 * rows, 7 * (rows % 2)], axis=-1).astype(np.uint8)
    (result,) = OPERATIONS[name](frame[None], 0.7 * sense)
    x, y = columns + 0.5, rows + 0.5
    if sense == 1:
        x, y = SOURCES[name](x, y)
    elif name == "rotate":  # the other way round: mirrored, turned and mirrored back
        x, y = SOURCES[name](60 - x, y)
        x = 60 - x
    else:
        moved_x, moved_y = SOURCES[name](x, y)
        x, y = 2 * x - moved_x, 2 * y - moved_y
    inside = (x > 1) & (x < 59) & (y > 1) & (y < 39)
    outside = (x < -1) | (x > 61) | (y < -1) | (y > 41)
    assert inside.sum() > 900 and outside.sum() > 100
    # The ramps say which point is seen.
    assert abs(result[..., 0] / 4 + 0.5 - x)[inside].max() < 0.6
    assert abs(result[..., 1] / 6 + 0.5 - y)[inside].max() < 0.6
    assert (result[outside] == FILL).all()


@pytest.mark.parametrize(
    "name", sorted(OPERATIONS.keys() - {"autocontrast", "equalize", "invert", "posterize"})
)
def test_magnitude_0_changes_nothing(name):
    np.testing.assert_array_equal(OPERATIONS[name](_frames(), 0.0), _frames())


@settings(deadline=None)
@given(
    name=st.sampled_from(sorted(OPERATIONS)),
    level=st.floats(-1, 1),
    frame_count=st.integers(1, 3),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_frame_is_changed_as_if_it_were_alone(name, level, frame_count, height, width, seed):
    frames = _frames(seed, (frame_count, height, width))
    original = frames.copy()
    clip = OPERATIONS[name](frames, level)
    assert clip.dtype == np.uint8 and clip.shape == frames.shape
    np.testing.assert_array_equal(frames, original)
    for index in range(frame_count):
        np.testing.assert_array_equal(clip[index], OPERATIONS[name](frames[index : index + 1], level)[0])


@pytest.fixture
def calls(monkeypatch):
    """What was applied: (name, level), in order. The operations themselves do nothing."""
    applied = []
    recorders = {
        name: lambda frames, level, name=name: applied.append((name, level)) or frames for name in OPERATIONS
    }
    monkeypatch.setattr(rand_augment, "OPERATIONS", recorders)
    return applied


def test_four_operations_are_drawn_and_half_of_them_applied(calls):
    counts = []
    for seed in range(600):
        calls.clear()
        _apply(_frames(), seed, ops=4, magnitude=7.0)
        counts.append(len(calls))
    assert np.allclose(np.bincount(counts, minlength=5) / 600, np.array([1, 4, 6, 4, 1]) / 16, atol=0.06)


def test_operations_and_senses_are_equally_likely_and_magnitudes_as_asked(calls):
    for seed in range(500):
        _apply(_frames(), seed, ops=3, magnitude=7.0, probability=1.0)
    names = [name for name, _ in calls]
    assert len(names) == 1500
    assert all(60 < names.count(name) < 145 for name in OPERATIONS)
    levels = np.array([level for _, level in calls])
    np.testing.assert_allclose(abs(levels), 0.7)
    assert 680 < (levels > 0).sum() < 820
    assert len({tuple(names[start : start + 3]) for start in range(0, 1500, 3)}) > 400


def test_magnitudes_vary_by_their_deviation_within_0_and_10(calls):
    for seed in range(500):
        _apply(_frames(), seed, ops=4, magnitude=9.0, std=0.5, probability=1.0)
    magnitudes = 10 * abs(np.array([level for _, level in calls]))
    assert magnitudes.max() == 10 and magnitudes.min() > 7
    below = 9 - magnitudes[magnitudes < 9]
    assert abs(math.sqrt((below**2).mean()) - 0.5) < 0.04


def test_nothing_is_drawn_by_default():
    frames = _frames()
    assert rand_augment.rand_augment(frames, np.random.default_rng(0), config.RandAugment()) is frames
    assert _apply(frames, ops=9, probability=0.0) is frames


def test_the_same_generator_gives_the_same_clip():
    results = [_apply(_frames(), seed, ops=4, std=0.5) for seed in (1, 1, 2, 3, 4)]
    np.testing.assert_array_equal(results[0], results[1])
    assert len({result.tobytes() for result in results}) > 2


def test_the_fill_is_clips_mean_colour():
    assert colour.FILL == FILL
