"""Cells lie where they are in the image, whatever the image's proportions; samples are shown one at a time."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from mmlens.errors import ResultError
from mmlens.plots import image_overlay
from mmlens.result import AttributionResult, image_variables
from tests.result.examples import attribution, attribution_data, cell_boxes, run_info


def wide_attribution() -> AttributionResult:
    """One 800 × 400 image whose cells cover the central square, and one square image with fewer cells."""
    data = attribution_data(2)
    images = [np.full((400, 800, 3), 90, np.uint8), np.full((100, 100, 3), 200, np.uint8)]
    boxes = [cell_boxes(400, 4) + np.array([200, 0, 200, 0]), cell_boxes(100, 2)]
    weights = [np.arange(16.0).reshape(4, 4), np.ones((2, 2))]
    data = data.assign(image_variables(images=images, boxes=boxes, weights=weights))
    return AttributionResult(data=data, info=run_info())


def test_cells_keep_their_true_place_in_a_wide_image() -> None:
    heat = image_overlay(wide_attribution()).data[2]
    assert np.allclose(heat.x, np.linspace(84, 252, 5), atol=1e-3)  # the 336 × 168 thumbnail's central square
    assert np.allclose(heat.y, np.linspace(0, 168, 5), atol=1e-3)
    assert np.array_equal(heat.z, np.arange(16.0).reshape(4, 4))
    assert heat.zmin == -heat.zmax == -15.0


def test_a_smaller_grid_loses_its_padding() -> None:
    heat = image_overlay(wide_attribution()).data[5]
    assert np.allclose(heat.x, [0, 50, 100]) and np.array_equal(heat.z, np.ones((2, 2)))


def test_the_slider_shows_one_sample_in_its_own_proportions() -> None:
    figure = image_overlay(wide_attribution())
    steps = figure.layout.sliders[0].steps
    assert [trace.visible for trace in figure.data] == [True] * 3 + [False] * 3
    assert steps[1].args[0]["visible"] == [False] * 3 + [True] * 3
    assert steps[0].args[1] == {"xaxis.range": [0, 336], "yaxis.range": [168, 0]}
    assert steps[1].args[1] == {"xaxis.range": [0, 100], "yaxis.range": [100, 0]}


def test_the_image_is_the_thumbnail_without_padding() -> None:
    figure = image_overlay(wide_attribution())
    picture = Image.open(io.BytesIO(base64.b64decode(figure.data[3].source.split(",")[1])))
    assert np.array_equal(np.asarray(picture), np.full((100, 100, 3), 200, np.uint8))


def test_the_picture_under_the_cells_is_grey_and_light() -> None:
    figure = image_overlay(attribution())
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(figure.data[1].source.split(",")[1]))))
    assert (np.ptp(pixels.astype(int), axis=2) == 0).all() and pixels.min() >= 110


def test_one_sample_needs_no_slider() -> None:
    assert not image_overlay(attribution().select(0)).layout.sliders


def test_only_so_many_samples_are_drawn() -> None:
    assert len(image_overlay(attribution(), max_samples=2).data) == 6


def test_without_cells_there_is_nothing_to_draw() -> None:
    with pytest.raises(ResultError, match="holds no cell_weight"):
        image_overlay(attribution(drawings=False))


@pytest.mark.parametrize("change", ["skewed", "missing", "no image"])
def test_cells_that_are_no_grid_and_missing_images_are_refused(change: str) -> None:
    data = wide_attribution().data.copy(deep=True)
    if change == "skewed":
        data["cell_box"].values[0, 1, 1, 0] += 0.1
    elif change == "missing":
        data["cell_box"].values[0] = np.nan
    else:
        data["image_height"].values[0] = 0
    with pytest.raises(ResultError, match=r"straight grid|no boxes|no image"):
        image_overlay(AttributionResult(data=data, info=run_info()))
