"""Boxes, masks and the cells they cover."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmlens.errors import RegionError
from mmlens.inputs.geometry import ImageGeometry
from mmlens.inputs.regions import Box, RegionMask, check_region, coverage, covered_cells
from tests.inputs.kits import unchecked


def cells(width, height, n_rows, n_cols):
    """Boxes that tile a whole image; cells need not be square, nor edges whole."""
    x = np.linspace(0, width, n_cols + 1)
    y = np.linspace(0, height, n_rows + 1)
    boxes = np.empty((n_rows, n_cols, 4))
    boxes[..., 0], boxes[..., 2] = x[None, :-1], x[None, 1:]
    boxes[..., 1], boxes[..., 3] = y[:-1, None], y[1:, None]
    return boxes


sides = st.integers(1, 24)
grids = st.tuples(sides, sides, st.integers(1, 6), st.integers(1, 6))


@st.composite
def boxes_in(draw, width, height):
    left, right = sorted(draw(st.tuples(st.integers(0, 8 * width), st.integers(0, 8 * width))))
    top, bottom = sorted(draw(st.tuples(st.integers(0, 8 * height), st.integers(0, 8 * height))))
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    if right > 8 * width:
        left, right = left - 1, right - 1
    if bottom > 8 * height:
        top, bottom = top - 1, bottom - 1
    return Box(left=left / 8, top=top / 8, right=right / 8, bottom=bottom / 8)


def areas(boxes):
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


@given(st.data(), grids)
def test_a_box_is_conserved(data, grid):
    width, height, *_ = grid
    box = data.draw(boxes_in(width, height))
    boxes = cells(*grid)
    covered = (coverage(box, boxes) * areas(boxes)).sum()
    np.testing.assert_allclose(covered, (box.right - box.left) * (box.bottom - box.top), rtol=1e-9)


@given(st.data(), grids)
def test_a_mask_is_conserved_and_equals_a_naive_count(data, grid):
    width, height, _, _ = grid
    mask = data.draw(hnp.arrays(bool, (height, width)))
    mask[data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))] = True
    boxes = cells(*grid)
    found = coverage(RegionMask(mask=mask), boxes) * areas(boxes)
    naive = np.zeros(boxes.shape[:2])
    for y, x in np.argwhere(mask):
        one = Box(left=float(x), top=float(y), right=float(x + 1), bottom=float(y + 1))
        naive += coverage(one, boxes) * areas(boxes)
    np.testing.assert_allclose(found, naive, atol=1e-9)
    np.testing.assert_allclose(found.sum(), mask.sum(), atol=1e-9)


@given(st.data(), grids)
def test_a_box_equals_its_mask(data, grid):
    width, height, _, _ = grid
    left = data.draw(st.integers(0, width - 1))
    top = data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    box = Box(left=left, top=top, right=right, bottom=bottom)
    boxes = cells(*grid)
    np.testing.assert_allclose(coverage(box, boxes), coverage(RegionMask(mask=mask), boxes), atol=1e-9)
    np.testing.assert_array_equal(covered_cells(box, boxes), covered_cells(RegionMask(mask=mask), boxes))


@given(st.data(), grids, st.floats(0, 1), st.floats(0, 1))
def test_more_coverage_asked_means_fewer_cells(data, grid, one, two):
    box = data.draw(boxes_in(grid[0], grid[1]))
    few, many = (
        covered_cells(box, cells(*grid), max(one, two)),
        covered_cells(box, cells(*grid), min(one, two)),
    )
    assert not (few & ~many).any()
    assert covered_cells(box, cells(*grid)).any()


def test_touching_is_not_overlapping():
    boxes = cells(40, 40, 4, 4)
    hit = covered_cells(Box(left=10, top=10, right=20, bottom=20), boxes)
    assert np.argwhere(hit).tolist() == [[1, 1]]
    hit = covered_cells(Box(left=9.9, top=10, right=20, bottom=20.1), boxes)
    assert np.argwhere(hit).tolist() == [[1, 0], [1, 1], [2, 0], [2, 1]]


def test_min_coverage_by_hand():
    boxes = cells(40, 40, 4, 4)
    box = Box(left=5, top=0, right=20, bottom=10)
    assert np.argwhere(covered_cells(box, boxes, 0.5)).tolist() == [[0, 0], [0, 1]]
    assert np.argwhere(covered_cells(box, boxes, 0.51)).tolist() == [[0, 1]]
    assert np.argwhere(covered_cells(box, boxes, 1.0)).tolist() == [[0, 1]]


def test_a_cell_that_shows_only_padding_is_in_no_region():
    geometry = ImageGeometry(size=(10, 40), processed=(40, 40), scale=(1.0, 1.0), offset=(15.0, 0.0))
    boxes = geometry.cell_boxes(4, 4, 10)
    everything = Box(left=0, top=0, right=40, bottom=10)
    for threshold in (0.0, 0.5):
        assert covered_cells(everything, boxes, threshold).any(axis=1).tolist() == [False, True, True, False]


# ---- errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        ((5, 0, 5, 9), "covers nothing.*left < right.*x \\+ width"),
        ((0, 9, 5, 9), "covers nothing"),
        ((6, 0, 5, 9), "covers nothing"),
        ((-1, 0, 5, 9), "starts outside"),
        ((0, -0.5, 5, 9), "starts outside"),
        ((0, 0, float("nan"), 9), "finite"),
        ((0, 0, float("inf"), 9), "finite"),
    ],
)
def test_boxes_that_are_none(edges, words):
    left, top, right, bottom = (float(edge) for edge in edges)
    with pytest.raises(RegionError, match=words):
        Box(left=left, top=top, right=right, bottom=bottom)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((4, 4), bool), "False everywhere"),
        (np.ones((4, 4), np.uint8), "mask > 0"),
        (np.ones((4, 4, 1), bool), r"bool array \[height, width\]"),
        ([[True]], "not list"),
    ],
)
def test_masks_that_are_none(mask, words):
    with pytest.raises(RegionError, match=words):
        unchecked(RegionMask, mask=mask)


def test_negative_images():
    with pytest.raises(RegionError, match="from 0"):
        RegionMask(mask=np.ones((2, 2), bool), image=-1)


@pytest.mark.parametrize(
    ("region", "words"),
    [
        (Box(left=0, top=0, right=41, bottom=5), "sticks out.*image 0 is 40×30"),
        (Box(left=0, top=0, right=5, bottom=31), "sticks out"),
        (Box(left=0, top=0, right=5, bottom=5, image=2), "image 2, but the sample has 2"),
        (RegionMask(mask=np.ones((40, 30), bool)), "mask of 30×40, but image 0 is 40×30"),
    ],
)
def test_regions_outside_their_image(region, words):
    with pytest.raises(RegionError, match=f"my region.*{words}"):
        check_region(region, [(30, 40), (9, 9)], "my region")


def test_regions_inside_their_image_pass():
    check_region(Box(left=0, top=0, right=40, bottom=30), [(30, 40)], "x")
    check_region(RegionMask(mask=np.ones((9, 8), bool), image=1), [(30, 40), (9, 8)], "x")


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_min_coverage_out_of_range(value):
    with pytest.raises(RegionError, match="between 0"):
        covered_cells(Box(left=0, top=0, right=1, bottom=1), cells(4, 4, 2, 2), value)
