"""Thumbnails, cells and tokens: geometry survives resizing and padding."""

import numpy as np
import pytest
from PIL import Image

from mmlens.errors import ResultError
from mmlens.result import image_variables, token_variables
from tests.result.examples import cell_boxes


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def test_small_images_are_kept_as_they_are_and_padded() -> None:
    found = image_variables(images=[image(10, 20), image(15, 5), None])
    assert found["image"].shape == (3, 15, 20, 3)
    assert found["image_height"].values.tolist() == [10, 15, 0]
    assert found["image_width"].values.tolist() == [20, 5, 0]
    assert np.array_equal(found["image"].values[0, :10, :20], image(10, 20))
    assert not found["image"].values[0, 10:].any()


@pytest.mark.parametrize(("height", "width"), [(1000, 500), (400, 1), (336, 337)])
def test_large_images_shrink_to_the_longest_side(height: int, width: int) -> None:
    found = image_variables(images=[image(height, width)])
    size = int(found["image_height"][0]), int(found["image_width"][0])
    assert max(size) == 336
    assert size == (
        max(1, round(height * 336 / max(height, width))),
        max(1, round(width * 336 / max(height, width))),
    )


def test_boxes_become_fractions_of_the_original() -> None:
    boxes = cell_boxes(side=600, grid=2) + np.array(
        [100, 0, 100, 0]
    )  # a central square of an 800 × 600 image
    direct = image_variables(images=[image(600, 800)], boxes=[boxes])["cell_box"].values[0]
    via_thumbnail = image_variables(images=[image(60, 80)], boxes=[boxes], sizes=[(600, 800)])["cell_box"]
    assert direct[0, 0].tolist() == pytest.approx([0.125, 0.0, 0.5, 0.5])
    assert direct[1, 1].tolist() == pytest.approx([0.5, 0.5, 0.875, 1.0])
    assert np.allclose(direct, via_thumbnail.values[0])


def test_smaller_grids_are_padded_with_undefined_cells() -> None:
    found = image_variables(
        images=[image(8, 8), image(8, 8), None],
        boxes=[cell_boxes(8, 2), cell_boxes(8, 4), None],
        weights=[np.ones((2, 2)), np.full((4, 4), 2.0), None],
    )
    weights = found["cell_weight"].values
    assert np.isnan(weights[0]).sum() == 12 and np.nansum(weights[0]) == 4
    assert np.isnan(weights[2]).all() and np.isnan(found["cell_box"].values[2]).all()


def test_pillow_images_are_converted() -> None:
    grey = Image.fromarray(np.full((4, 4), 7, np.uint8))
    assert (image_variables(images=[grey])["image"].values == 7).all()


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)]
)
def test_arrays_that_are_no_rgb_images_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ResultError, match="uint8"):
        image_variables(images=[bad])


def test_unequal_lengths_and_weights_without_boxes_are_refused() -> None:
    with pytest.raises(ResultError, match="2 images but 1 boxes"):
        image_variables(images=[image(4, 4)] * 2, boxes=[cell_boxes()])
    with pytest.raises(ResultError, match="need boxes"):
        image_variables(images=[image(4, 4)], weights=[np.zeros((2, 2))])
    with pytest.raises(ResultError, match="differ in length"):
        token_variables(tokens=[["a", "b"]], roles=[["question"]])


def test_tokens_are_padded_on_the_right_and_made_storable() -> None:
    assert token_variables(tokens=[["\ud83d"]], roles=[["question"]])["token"].values.tolist() == [["?"]]
    found = token_variables(tokens=[["a"], ["b", "c"]], roles=[["question"], ["role", "final"]])
    assert found["token"].values.tolist() == [["a", ""], ["b", "c"]]
    assert found["role"].values.tolist() == [["question", "pad"], ["role", "final"]]
