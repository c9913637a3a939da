import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inti_jax.data.augmentation import crops

SIDES = st.integers(1, 500)


def _assert_inside(box, height, width):
    top, left, box_height, box_width = box
    assert min(top, left) >= 0 and min(box_height, box_width) > 0
    assert top + box_height <= height and left + box_width <= width


@given(
    height=SIDES,
    width=SIDES,
    seed=st.integers(0, 2**32 - 1),
    scale=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)),
    ratio=st.tuples(st.floats(0.05, 20), st.floats(0.05, 20)),
)
def test_a_random_resized_box_is_inside_the_frame(height, width, seed, scale, ratio):
    rng = np.random.default_rng(seed)
    scale, ratio = tuple(sorted(scale)), tuple(sorted(ratio))
    _assert_inside(crops.random_resized_box(rng, height, width, scale, ratio), height, width)


@given(height=SIDES, width=SIDES, seed=st.integers(0, 2**32 - 1), shape=st.tuples(SIDES, SIDES))
def test_a_multi_scale_box_is_in_a_corner_or_the_centre(height, width, seed, shape):
    box = crops.multi_scale_box(np.random.default_rng(seed), height, width, shape)
    _assert_inside(box, height, width)
    top, left, box_height, box_width = box
    at_corner = top in (0, height - box_height) and left in (0, width - box_width)
    at_centre = abs(2 * top + box_height - height) <= 1 and abs(2 * left + box_width - width) <= 1
    assert at_corner or at_centre


@pytest.mark.parametrize(("height", "width"), [(256, 340), (340, 256)])
def test_multi_scale_boxes_are_those_of_tsn(height, width):
    rng = np.random.default_rng(0)
    boxes = {crops.multi_scale_box(rng, height, width, (112, 112)) for _ in range(4000)}
    sides = [256, 224, 192, 168]  # the paper's, of frames whose short side is 256
    allowed = {(a, b) for a in sides for b in sides if abs(sides.index(a) - sides.index(b)) <= 1}
    assert {box[2:] for box in boxes} == allowed
    places = {side: {0, (256 - side) // 2, 256 - side} for side in sides}
    places_of_longer = {side: {0, (340 - side) // 2, 340 - side} for side in sides}
    if height > width:
        places, places_of_longer = places_of_longer, places
    for box_height, box_width in allowed:
        seen = [box for box in boxes if box[2:] == (box_height, box_width)]
        assert {box[0] for box in seen} == places[box_height]
        assert {box[1] for box in seen} == places_of_longer[box_width]
        # Five places, fewer where a side is as long as the frame's.
        assert len(seen) == (5 if 256 not in (box_height if height < width else box_width,) else 3)


@given(height=SIDES, width=SIDES, shape=st.tuples(SIDES, SIDES))
def test_the_largest_box_fills_one_side_and_has_the_asked_proportions(height, width, shape):
    rows, columns = crops.largest(height, width, shape)
    assert 1 <= rows <= height and 1 <= columns <= width
    assert rows == height or columns == width
    # Exact proportions would be within half a pixel, but no side has less than one.
    exact = columns * shape[0] / shape[1], rows * shape[1] / shape[0]
    assert min(abs(rows - max(1, exact[0])), abs(columns - max(1, exact[1]))) <= 0.5 + 1e-9
    if shape[0] == shape[1]:
        assert rows == columns == min(height, width)


def test_multi_scale_boxes_of_another_shape_are_shares_of_the_largest():
    rng = np.random.default_rng(0)
    boxes = {crops.multi_scale_box(rng, 256, 340, (84, 112))[2:] for _ in range(1000)}
    heights, widths = [255, 223, 191, 168], [340, 297, 255, 224]  # the largest is 255 x 340
    assert boxes == {(heights[i], widths[j]) for i in range(4) for j in range(4) if abs(i - j) <= 1}


def test_areas_and_ratios_are_spread_over_what_was_asked():
    rng = np.random.default_rng(0)
    boxes = [crops.random_resized_box(rng, 1000, 1000, (0.1, 0.5), (0.5, 2.0)) for _ in range(2000)]
    areas = np.array([height * width / 1e6 for _, _, height, width in boxes])
    ratios = np.array([math.log2(width / height) for _, _, height, width in boxes])
    assert 0.098 < areas.min() < 0.11 and 0.48 < areas.max() < 0.502
    assert abs(areas.mean() - 0.3) < 0.01  # uniform
    assert -1.01 < ratios.min() < -0.95 and 0.95 < ratios.max() < 1.01
    assert abs(ratios.mean()) < 0.05


def test_a_resized_box_shows_the_box():
    rows, columns = np.mgrid[:40, :60]
    frame = np.stack([4 * columns, 6 * rows, 0 * rows], axis=-1).astype(np.uint8)
    clip = crops.resize_box(np.stack([frame, frame // 2]), (10, 30, 10, 20), (24, 40))
    rows_seen, columns_seen = ((np.arange(size) + 0.5) / size for size in (24, 40))
    for image, share in zip(clip.astype(float), (1, 0.5), strict=True):
        assert abs(image[..., 0] - share * 4 * (30 + 20 * columns_seen - 0.5)).max() <= 2
        assert abs(image[..., 1] - share * 6 * (10 + 10 * rows_seen[:, None] - 0.5)).max() <= 2
