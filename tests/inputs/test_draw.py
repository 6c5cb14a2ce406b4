"""Drawings: the right cells get the right colours."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmlens.errors import NonFiniteError, SelectorError, ShapeError, UnknownGroup
from mmlens.inputs.prepare import prepare
from mmlens.inputs.prompt import Prompt
from mmlens.inputs.regions import Box
from mmlens.inputs.token_map import TokenMap

GREY = (128, 128, 128)


@pytest.fixture(scope="module")
def token_map(word):
    image = Image.new("RGB", (56, 28), GREY)
    regions = {
        "object": Box(left=14, top=0, right=21, bottom=7),
        "rest": Box(left=14, top=7, right=42, bottom=28),
    }
    prompt = Prompt(question="What?", image=image, regions=regions)
    return prepare(prompt, processor=word.processor, cfg=word.cfg).token_maps[0]


def colour_at(picture, token_map, row, col):
    left, top, right, bottom = token_map.images[0].boxes[row, col] * (picture.width / 56)
    return np.array(picture.getpixel((int((left + right) / 2), int((top + bottom) / 2))))


def changed(picture, token_map):
    return np.array(
        [[(colour_at(picture, token_map, r, c) != GREY).any() for c in range(4)] for r in range(4)]
    )


def test_a_group_colours_its_cells_only(token_map):
    picture = token_map.draw("object")
    assert picture.mode == "RGB" and picture.width == 480 and picture.height > 240
    np.testing.assert_array_equal(changed(picture, token_map), token_map.cells("object")[0])
    assert picture.getpixel((5, 120)) == GREY  # cropped away: no cell


def test_groups_have_their_own_colours(token_map):
    picture = token_map.draw(["object", "rest"], opacity=1)
    assert colour_at(picture, token_map, 0, 0).tolist() == [230, 159, 0]
    assert colour_at(picture, token_map, 2, 2).tolist() == [86, 180, 233]
    assert colour_at(picture, token_map, 0, 2).tolist() == list(GREY)


def test_values_are_red_above_and_blue_below_zero(token_map):
    values = np.full((4, 4), np.nan)
    values[0, 0], values[1, 1], values[2, 2] = 2.0, -2.0, 0.0
    picture = token_map.draw(values, opacity=1)
    assert colour_at(picture, token_map, 0, 0).tolist() == [178, 24, 43]
    assert colour_at(picture, token_map, 1, 1).tolist() == [33, 102, 172]
    assert colour_at(picture, token_map, 2, 2).tolist() == [247, 247, 247]
    assert colour_at(picture, token_map, 3, 3).tolist() == list(GREY)


def test_values_per_position_equal_values_per_cell(token_map):
    cells = np.random.default_rng(0).normal(size=(4, 4))
    by_position = torch.full((token_map.n_pos,), 9.0)
    by_position[torch.from_numpy(token_map.images[0].positions)] = torch.from_numpy(cells).float()
    assert token_map.draw(by_position).tobytes() == token_map.draw(cells.astype(np.float32)).tobytes()


@pytest.mark.parametrize(
    "values", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.ones((4, 4)), -np.ones((4, 4))]
)
def test_constant_values_draw(token_map, values):
    assert token_map.draw(values).size[0] == 480


def test_masks_are_selectors(token_map):
    assert token_map.draw(token_map.mask("object")).size == token_map.draw("object").size
    assert changed(token_map.draw(token_map.mask("object")), token_map).sum() == 1


@pytest.mark.parametrize(
    ("what", "options", "error", "words"),
    [
        ("dog", {}, UnknownGroup, "'dog'"),
        (["object", "dog"], {}, UnknownGroup, "'dog'"),
        ("object", {"image": 1}, SelectorError, "no image 1"),
        (np.zeros((3, 4)), {}, ShapeError, r"\[4, 4\] \(one per cell\); got \[3, 4\]"),
        (np.full((4, 4), np.inf), {}, NonFiniteError, "infinity"),
    ],
)
def test_what_cannot_be_drawn(token_map, what, options, error, words):
    with pytest.raises(error, match=words):
        token_map.draw(what, **options)


def test_without_thumbnails(token_map):
    bare = TokenMap(tokens=token_map.tokens, roles=token_map.roles, images=token_map.images)
    with pytest.raises(ShapeError, match="no thumbnails"):
        bare.draw("image")
