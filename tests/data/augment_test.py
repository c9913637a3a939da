import numpy as np
import pytest

from inti_jax.data import augment


def _train(frames, seed, **changes):
    options = {"resolution": 32, "scale": (0.3, 1.0), "ratio": (0.75, 4 / 3), "flip": True} | changes
    return augment.train_clip(frames, np.random.default_rng(seed), **options)


def _ramp(height, width):
    """A frame whose red is its column and whose green is its row, over 0..255."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[..., 0] = np.linspace(0, 255, width)[None, :]
    frame[..., 1] = np.linspace(0, 255, height)[:, None]
    return frame


@pytest.mark.parametrize("seed", range(20))
def test_every_frame_of_a_clip_is_treated_alike(seed):
    clip = _train(np.stack([_ramp(48, 70)] * 4), seed)
    assert clip.shape == (4, 32, 32, 3)
    for frame in clip[1:]:
        np.testing.assert_array_equal(frame, clip[0])


def test_flip_mirrors_about_half_of_the_clips_and_changes_no_crop():
    frames = _ramp(40, 40)[None]
    mirrored = 0
    for seed in range(100):
        flipped, plain = _train(frames, seed, flip=True), _train(frames, seed, flip=False)
        mirrored += bool((np.diff(flipped[0, 16, :, 0].astype(int)) < 0).any())
        assert np.array_equal(flipped, plain) or np.array_equal(flipped[:, :, ::-1], plain)
    assert 30 < mirrored < 70


def test_crops_have_the_asked_area_and_shape():
    frames = _ramp(200, 200)[None]
    for seed in range(50):
        clip = _train(frames, seed, scale=(0.25, 0.5), ratio=(0.75, 4 / 3), flip=False)[0].astype(float)
        # The ramps tell which part of the frame is seen.
        width = (clip[16, -1, 0] - clip[16, 0, 0]) / 255 * 32 / 31
        height = (clip[-1, 16, 1] - clip[0, 16, 1]) / 255 * 32 / 31
        assert 0.22 < width * height < 0.53
        assert 0.7 < width / height < 1.43


def test_a_frame_too_wide_for_any_crop_gives_its_middle():
    clip = _train(_ramp(10, 400)[None], 0, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=False)
    assert 115 < clip[..., 0].mean() < 140


def test_a_full_frame_of_the_right_size_is_untouched():
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    clip = _train(frames, 0, resolution=64, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=False)
    np.testing.assert_array_equal(clip, frames)
    np.testing.assert_array_equal(augment.test_views(frames, resolution=64, crops=1)[0], frames)


@pytest.mark.parametrize(("height", "width"), [(32, 80), (80, 32)])
def test_three_views_lie_along_the_longer_side(height, width):
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    views = augment.test_views(frames, resolution=32, crops=3)
    longer = 2 if width > height else 1
    for view, start in zip(views, (0, 24, 48), strict=True):
        np.testing.assert_array_equal(view, np.take(frames, range(start, start + 32), axis=longer))
    central = augment.test_views(frames, resolution=32, crops=1)
    np.testing.assert_array_equal(central[0], views[1])


def test_shrinking_does_not_alias():
    stripes = np.zeros((1, 256, 256, 3), np.uint8)
    stripes[:, :, ::2] = 255  # finer than the small frame can show: it should turn grey
    view = augment.test_views(stripes, resolution=32, crops=1)
    assert abs(view.astype(int) - 127).max() < 12
