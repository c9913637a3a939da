import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inti_jax.data import sampling

totals, lengths, strides = st.integers(1, 400), st.integers(1, 32), st.integers(1, 20)
kinds, seeds = st.sampled_from(["dense", "uniform"]), st.none() | st.integers(0, 1000)


def _rng(seed):
    return None if seed is None else np.random.default_rng(seed)


@given(totals, lengths, strides, kinds, seeds)
def test_in_range_in_order_and_repeatable(total, num_frames, stride, kind, seed):
    def draw():
        return sampling.clip_indices(
            total, num_frames=num_frames, sampling=kind, stride=stride, rng=_rng(seed)
        )

    indices = draw()
    assert len(indices) == num_frames
    assert indices.min() >= 0 and indices.max() < total
    assert (np.diff(indices) >= 0).all()
    np.testing.assert_array_equal(indices, draw())


@given(totals, lengths, strides, seeds)
def test_dense_frames_are_a_stride_apart_until_the_last_is_repeated(total, num_frames, stride, seed):
    indices = sampling.dense(total, num_frames, stride, _rng(seed))
    np.testing.assert_array_equal(indices, np.minimum(indices[0] + stride * np.arange(num_frames), total - 1))
    if total > (num_frames - 1) * stride:
        assert indices[-1] - indices[0] == (num_frames - 1) * stride
    else:
        assert indices[0] == 0


@given(st.integers(1, 30), lengths, st.integers(0, 1000))
def test_uniform_takes_one_frame_of_each_segment(frames_each, num_frames, seed):
    indices = sampling.uniform(frames_each * num_frames, num_frames, np.random.default_rng(seed))
    np.testing.assert_array_equal(indices // frames_each, np.arange(num_frames))


def test_random_clips_reach_every_start():
    rng = np.random.default_rng(0)
    starts = {sampling.dense(19, 8, 2, rng)[0] for _ in range(200)}
    assert starts == {0, 1, 2, 3, 4}


def test_test_clips_spread_over_the_video():
    assert [sampling.dense(100, 8, 2, clip=clip, clips=3)[0] for clip in range(3)] == [0, 43, 85]
    assert sampling.dense(100, 8, 2)[0] == 42
    np.testing.assert_array_equal(sampling.uniform(80, 8), np.arange(5, 80, 10))
    first, second = (sampling.uniform(80, 8, clip=clip, clips=2) for clip in range(2))
    np.testing.assert_array_equal(first, np.arange(2, 80, 10))
    np.testing.assert_array_equal(second, np.arange(7, 80, 10))


@given(st.integers(1, 100), lengths, strides)
def test_the_centred_clip_leaves_as_much_before_as_after(total, num_frames, stride):
    indices = sampling.dense(total, num_frames, stride)
    before, after = indices[0], total - 1 - indices[-1]
    if total > (num_frames - 1) * stride:
        assert after - before in (0, 1)


@given(totals, lengths, strides, kinds, st.integers(1, 4))
def test_a_video_of_a_clips_span_gives_clips_as_they_should_be(total, num_frames, stride, kind, clips):
    enough = total >= sampling.span(num_frames, kind, stride)
    for clip in range(clips):
        indices = sampling.clip_indices(
            total, num_frames=num_frames, sampling=kind, stride=stride, clip=clip, clips=clips
        )
        steps = np.diff(indices)
        assert enough == bool(((steps == stride) if kind == "dense" else (steps > 0)).all())


@pytest.mark.parametrize("kind", ["dense", "uniform"])
def test_a_video_of_one_frame_is_repeated(kind):
    indices = sampling.clip_indices(1, num_frames=4, sampling=kind, stride=3)
    np.testing.assert_array_equal(indices, [0, 0, 0, 0])
