import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from inti_jax import config
from inti_jax.data.augmentation import colour

FACTORS = (0.0, 0.1, 0.37, 1.0, 1.63, 1.9, 2.5)
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601
ALL = config.Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
STEPS = ("brightness", "contrast", "saturation", "hue")


def _frames(seed=0, shape=(3, 17, 23)):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize("factor", FACTORS)
def test_brightness_is_pillows_to_the_bit(factor):
    frames = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    expected = ImageEnhance.Brightness(Image.fromarray(frames[0])).enhance(factor)
    np.testing.assert_array_equal(colour.brightness(frames, factor)[0], np.asarray(expected))


@pytest.mark.parametrize("factor", FACTORS)
def test_contrast_moves_away_from_each_frames_mean_luma(factor):
    frames = _frames()
    frames[1] //= 4
    mean = (frames @ LUMA).mean(axis=(1, 2))[:, None, None, None]
    expected = np.clip(mean + factor * (frames - mean), 0, 255)
    assert abs(colour.contrast(frames, factor) - expected).max() <= 1 + abs(1 - factor)


@pytest.mark.parametrize("factor", FACTORS)
def test_saturation_moves_away_from_each_pixels_luma(factor):
    frames = _frames()
    luma = (frames @ LUMA)[..., None]
    expected = np.clip(luma + factor * (frames - luma), 0, 255)
    assert abs(colour.saturation(frames, factor) - expected).max() <= 1 + abs(1 - factor)


@pytest.mark.parametrize("turn", [-0.5, -0.25, 0.1, 1 / 3, 0.5])
def test_hue_turns_on_the_circle_of_hsv(turn):
    frames = _frames(shape=(2, 9, 9))
    expected = np.empty(frames.shape)
    for place in np.ndindex(frames.shape[:-1]):
        hue, saturation, value = colorsys.rgb_to_hsv(*frames[place] / 255)
        expected[place] = 255 * np.array(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))
    # A unit of Pillow's 8-bit hue is up to 6 levels of a channel: one is lost in the hue before, one in the
    # turn, and one in the circle, which has 255 steps but overflows after 256.
    error = abs(colour.hue(frames, turn) - expected)
    assert error.max() <= 18 and error.mean() <= 3


def test_a_third_of_a_turn_makes_red_green_and_green_blue():
    red, green, blue = (np.full((1, 2, 2, 3), rgb, np.uint8) for rgb in np.eye(3, dtype=np.uint8) * 255)
    np.testing.assert_array_equal(colour.hue(red, 1 / 3), green)
    np.testing.assert_array_equal(colour.hue(green, 1 / 3), blue)
    np.testing.assert_allclose(colour.hue(red, -1 / 3), blue, atol=6)


def test_grey_is_luma_in_three_channels():
    frames = _frames()
    grey = colour.grayscale(frames)
    assert (grey == grey[..., :1]).all()
    assert abs(grey - (frames @ LUMA)[..., None]).max() <= 1


@settings(deadline=None)
@given(
    frame_count=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_frame_is_jittered_as_if_it_were_alone(frame_count, height, width, seed):
    frames = _frames(seed, (frame_count, height, width))
    original = frames.copy()
    clip = colour.jitter(frames, np.random.default_rng(seed), ALL)
    assert clip.dtype == np.uint8 and clip.shape == frames.shape
    np.testing.assert_array_equal(frames, original)
    for index in range(frame_count):
        alone = colour.jitter(frames[index : index + 1], np.random.default_rng(seed), ALL)
        np.testing.assert_array_equal(clip[index], alone[0])


def _record_steps(monkeypatch):
    calls = []
    for name in STEPS:
        monkeypatch.setattr(
            colour, name, lambda frames, amount, name=name: calls.append((name, amount)) or frames
        )
    return calls


def test_jitter_takes_its_steps_in_every_order_with_amounts_all_over_the_range(monkeypatch):
    calls = _record_steps(monkeypatch)
    for seed in range(500):
        colour.jitter(_frames(), np.random.default_rng(seed), ALL)
    orders = {tuple(name for name, _ in calls[start : start + 4]) for start in range(0, len(calls), 4)}
    assert len(orders) == 24
    for name in STEPS:
        amounts = [amount for step, amount in calls if step == name]
        low, high = (-0.1, 0.1) if name == "hue" else (0.6, 1.4)
        width = high - low
        assert low <= min(amounts) < low + 0.02 * width and high - 0.02 * width < max(amounts) <= high
        assert abs(np.mean(amounts) - (low + high) / 2) < 0.05 * width


def test_a_strength_of_zero_leaves_its_step_out_and_one_above_1_stays_positive(monkeypatch):
    calls = _record_steps(monkeypatch)
    for seed in range(200):
        colour.jitter(_frames(), np.random.default_rng(seed), config.Jitter(contrast=3.0))
    assert {name for name, _ in calls} == {"contrast"}
    assert 0 <= min(amount for _, amount in calls) < 0.1 and max(amount for _, amount in calls) > 3.8


def test_jitter_is_off_by_default_and_as_frequent_as_asked():
    frames = _frames()
    assert colour.jitter(frames, np.random.default_rng(0), config.Jitter()) is frames
    cfg = config.Jitter(probability=0.3, brightness=0.5)
    changed = sum(
        not np.array_equal(colour.jitter(frames, np.random.default_rng(seed), cfg), frames)
        for seed in range(400)
    )
    assert 85 < changed < 155
