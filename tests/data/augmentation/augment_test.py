import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inti_jax import config
from inti_jax.data.augmentation import augment, colour

CFG = config.Data(resolution=32, crop_scale=(0.3, 1.0), flip=True)
# Every augmentation, on every clip.
ALL = dataclasses.replace(
    CFG,
    crop="multi_scale",
    rand_augment=config.RandAugment(ops=4, std=0.5, probability=1.0),
    jitter=config.Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    grayscale=1.0,
    erase=config.Erase(probability=1.0),
)


def _augment(frames, seed, cfg=CFG, **changes):
    return augment.train_clip(frames, np.random.default_rng(seed), dataclasses.replace(cfg, **changes))


def _train(frames, seed, cfg=CFG, **changes):
    return _augment(frames, seed, cfg, **changes).frames


def _ramp(height, width):
    """A frame whose red is its column and whose green is its row, over 0..255."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[..., 0] = np.linspace(0, 255, width)[None, :]
    frame[..., 1] = np.linspace(0, 255, height)[:, None]
    return frame


def _noise(seed, shape=(3, 40, 50)):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("cfg", [CFG, ALL], ids=["defaults", "all"])
def test_every_frame_of_a_clip_is_treated_alike(seed, cfg):
    clip = _train(np.stack([_ramp(48, 70)] * 4), seed, cfg)
    assert clip.shape == (4, 32, 32, 3)
    for frame in clip[1:]:
        np.testing.assert_array_equal(frame, clip[0])


def test_flip_mirrors_about_half_of_the_clips_and_changes_no_crop():
    frames = _ramp(40, 40)[None]
    mirrored = 0
    for seed in range(100):
        flipped, plain = _augment(frames, seed, flip=True), _augment(frames, seed, flip=False)
        assert flipped.mirrored == bool((np.diff(flipped.frames[0, 16, :, 0].astype(int)) < 0).any())
        assert not plain.mirrored
        expected = plain.frames[:, :, ::-1] if flipped.mirrored else plain.frames
        np.testing.assert_array_equal(flipped.frames, expected)
        mirrored += flipped.mirrored
    assert 30 < mirrored < 70


def test_crops_have_the_asked_area_and_shape():
    frames = _ramp(200, 200)[None]
    for seed in range(50):
        clip = _train(frames, seed, crop_scale=(0.25, 0.5), flip=False)[0].astype(float)
        # The ramps tell which part of the frame is seen.
        width = (clip[16, -1, 0] - clip[16, 0, 0]) / 255 * 32 / 31
        height = (clip[-1, 16, 1] - clip[0, 16, 1]) / 255 * 32 / 31
        assert 0.22 < width * height < 0.53
        assert 0.7 < width / height < 1.43


def test_ratios_of_crops_are_relative_to_the_models_frames():
    frames = np.stack([_ramp(90, 160)])
    changes = {"resolution": (84, 112), "crop_scale": (0.4, 0.5), "flip": False}
    for seed in range(20):
        clip = _train(frames, seed, **changes, crop_ratio=(1.0, 1.0))[0].astype(float)
        assert clip.shape == (84, 112, 3)
        width = 160 * (clip[42, -1, 0] - clip[42, 0, 0]) / 255 * 112 / 111
        height = 90 * (clip[-1, 56, 1] - clip[0, 56, 1]) / 255 * 84 / 83
        assert abs(width / height - 112 / 84) < 0.08
    # Where no box has the ratio, the largest does.
    view = augment.test_views(frames, (84, 112), crops=1)[0]
    np.testing.assert_array_equal(
        _train(frames, 0, **changes | {"crop_scale": (1.0, 1.0)}, crop_ratio=(1.0, 1.0)), view
    )


def test_a_frame_too_wide_for_any_crop_gives_its_middle():
    clip = _train(_ramp(10, 400)[None], 0, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False)
    assert 115 < clip[..., 0].mean() < 140


def test_a_full_frame_of_the_right_size_is_untouched():
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    clip = _train(frames, 0, resolution=64, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False)
    np.testing.assert_array_equal(clip, frames)
    np.testing.assert_array_equal(augment.test_views(frames, (64, 64), crops=1)[0], frames)


@pytest.mark.parametrize("seed", range(10))
def test_by_default_a_clip_is_a_resized_box_and_its_mirror_image(seed):
    frames = _noise(seed)
    rng = np.random.default_rng(seed)
    while True:  # as Inception draws: area, shape, place, and then the flip
        area = 40 * 50 * rng.uniform(0.3, 1.0)
        aspect = np.exp(rng.uniform(np.log(0.75), np.log(4 / 3)))
        height, width = round(np.sqrt(area / aspect)), round(np.sqrt(area * aspect))
        if height <= 40 and width <= 50:
            break
    top, left = rng.integers(40 - height + 1), rng.integers(50 - width + 1)
    box = (left, top, left + width, top + height)
    clip = np.stack(
        [Image.fromarray(frame).resize((32, 32), Image.Resampling.BICUBIC, box) for frame in frames]
    )
    if rng.random() < 0.5:
        clip = clip[:, :, ::-1]
    np.testing.assert_array_equal(_train(frames, seed), clip)


@settings(deadline=None)
@given(
    frame_count=st.integers(1, 3),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    crop=st.sampled_from(["random_resized", "multi_scale"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_clip_is_a_function_of_frames_and_generator_for_all_sizes(frame_count, height, width, crop, seed):
    frames = _noise(seed, (frame_count, height, width))
    original = frames.copy()
    clip = _train(frames, seed, ALL, crop=crop)
    assert clip.shape == (frame_count, 32, 32, 3) and clip.dtype == np.uint8
    np.testing.assert_array_equal(clip, _train(frames, seed, ALL, crop=crop))
    np.testing.assert_array_equal(frames, original)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_turned_on_leaves_the_rest_as_it_is(seed):
    frames = _noise(seed)
    plain = _train(frames, seed)
    np.testing.assert_array_equal(_train(frames, seed, grayscale=1.0), colour.grayscale(plain))
    never = dataclasses.replace(ALL.rand_augment, probability=0.0)
    np.testing.assert_array_equal(_train(frames, seed, rand_augment=never), plain)
    brighter = _train(frames, seed, jitter=config.Jitter(brightness=0.5)).astype(int)
    order = np.argsort(plain, axis=None)
    assert (np.diff(brighter.ravel()[order]) >= 0).all()  # a growing function of the value
    # With all of them the box that is erased stays where it was.
    erased = _train(frames, seed, erase=ALL.erase)
    changed = (erased != plain).any(axis=(0, -1))
    also_grey = _train(frames, seed, erase=ALL.erase, grayscale=1.0)
    outside = (also_grey == also_grey[..., :1]).all(axis=(0, -1))
    assert (changed | outside).all() and (changed & outside).mean() < 0.01


def test_grey_clips_are_as_frequent_as_asked():
    clips = [_train(_noise(seed), seed, grayscale=0.2) for seed in range(300)]
    assert 38 < sum((clip == clip[..., :1]).all() for clip in clips) < 85


def test_rand_augment_sees_whole_frames(monkeypatch):
    shapes = []
    monkeypatch.setattr(augment, "rand_augment", lambda frames, *_: shapes.append(frames.shape) or frames)
    _train(_noise(0), 0)
    assert shapes == [(3, 40, 50, 3)]


def test_multi_scale_crops_are_no_smaller_than_two_thirds_of_the_short_side():
    sides = set()
    for seed in range(100):
        clip = _train(_ramp(100, 100)[None], seed, crop="multi_scale", flip=False)[0].astype(float)
        sides.add(round((clip[16, -1, 0] - clip[16, 0, 0]) / 255 * 32 / 31, 2))
    assert 0.6 < min(sides) < 0.72 and 0.95 < max(sides) < 1.05


def _erased(frames, seed, **settings):
    cfg = config.Erase(**{"probability": 1.0} | settings)
    return augment.erase(frames, np.random.default_rng(seed), cfg)


@pytest.mark.parametrize("fill", ["noise", "mean"])
def test_one_box_of_all_frames_is_erased(fill):
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    areas, ratios, fills = [], [], []
    for seed in range(200):
        clip = _erased(frames, seed, scale=(0.1, 0.3), ratio=(0.5, 2.0), fill=fill)
        assert (clip == clip[:1]).all()
        rows, columns = np.nonzero(clip[0].any(axis=-1))
        box = clip[0, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        areas.append(box.shape[0] * box.shape[1] / 64**2)
        ratios.append(box.shape[1] / box.shape[0])
        fills.append(box.reshape(-1, 3))
    assert 0.09 < min(areas) < 0.12 and 0.28 < max(areas) < 0.31
    assert 0.47 < min(ratios) < 0.55 and 1.8 < max(ratios) < 2.13
    pixels = np.concatenate(fills)
    if fill == "mean":
        assert (pixels == (123, 117, 104)).all()
    else:
        assert np.unique(pixels[:, 0]).size == 256
        assert abs(pixels.mean() - 127.5) < 0.5 and abs(pixels.std() - 256 / 12**0.5) < 0.5


def test_what_is_not_in_the_box_stays():
    frames = _noise(0)
    original = frames.copy()
    clip = _erased(frames, 0, fill="mean")
    inside = (clip == (123, 117, 104)).all(axis=(0, -1))
    assert 0.01 < inside.mean() < 0.4
    np.testing.assert_array_equal(clip[:, ~inside], frames[:, ~inside])
    np.testing.assert_array_equal(frames, original)


def test_erasing_is_off_by_default_and_as_frequent_as_asked():
    frames = _noise(0)
    assert augment.erase(frames, np.random.default_rng(0), config.Erase()) is frames
    erased = sum(_erased(frames, seed, probability=0.25) is not frames for seed in range(400))
    assert 70 < erased < 130


@pytest.mark.parametrize(("height", "width"), [(32, 80), (80, 32)])
def test_three_views_lie_along_the_longer_side(height, width):
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    views = augment.test_views(frames, (32, 32), crops=3)
    longer = 2 if width > height else 1
    for view, start in zip(views, (0, 24, 48), strict=True):
        np.testing.assert_array_equal(view, np.take(frames, range(start, start + 32), axis=longer))
    central = augment.test_views(frames, (32, 32), crops=1)
    np.testing.assert_array_equal(central[0], views[1])


@pytest.mark.parametrize(
    ("size", "shape", "box", "axis"),
    [
        ((72, 128), (84, 112), (72, 96), 2),  # wider than the shape
        ((128, 72), (84, 112), (54, 72), 1),  # taller
        ((96, 96), (84, 112), (72, 96), 1),  # square
        ((96, 96), (112, 84), (96, 72), 2),
    ],
)
def test_views_of_another_shape_lie_along_the_side_that_is_longer_for_it(size, shape, box, axis):
    frames = _noise(0, (2, *size))
    slack = size[axis - 1] - box[axis - 1]
    for crops in (1, 3):
        starts = (slack // 2,) if crops == 1 else (0, slack // 2, slack)
        for view, start in zip(augment.test_views(frames, shape, crops=crops), starts, strict=True):
            top, left = (start, 0) if axis == 1 else (0, start)
            area = (left, top, left + box[1], top + box[0])
            for seen, frame in zip(view, frames, strict=True):
                expected = Image.fromarray(frame).resize(shape[::-1], Image.Resampling.BICUBIC, area)
                np.testing.assert_array_equal(seen, np.asarray(expected))


def test_shrinking_does_not_alias():
    stripes = np.zeros((1, 256, 256, 3), np.uint8)
    stripes[:, :, ::2] = 255  # finer than the small frame can show: it should turn grey
    view = augment.test_views(stripes, (32, 32), crops=1)
    assert abs(view.astype(int) - 127).max() < 12
