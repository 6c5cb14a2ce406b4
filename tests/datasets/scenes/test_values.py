from itertools import product

import numpy as np
import pytest

from mmlens.datasets.scenes import CLASSES, COLOURS, GROUPS, PALETTES, TEXTURES, SceneObject, scene
from mmlens.datasets.scenes.draw import draw, shade
from mmlens.errors import ConfigError

FITS = {"name": "heart", "colour": "red", "texture": "plain", "size": 15, "left": 22, "top": 43}
FRAME = (20, 40, 40, 60)


def made(name="heart", **change):
    sample = {"sample": 42} if name == "digit" else {}
    return SceneObject(**{**FITS, "name": name, **sample, **change}, frame=FRAME)


def drawn(objects, palette):
    return np.asarray(draw(objects, background="checked", box=None, key="k", palette=palette)).astype(int)


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize("name", CLASSES)
def test_the_mask_is_exactly_the_pixels_drawn(name, palette):
    empty = drawn([], palette)
    for colour, texture in product(COLOURS, TEXTURES):
        item = made(name, colour=colour, texture=texture)
        pixels = drawn([item], palette)
        assert np.array_equal((pixels != empty).any(-1), item.mask)
        if texture == "plain":
            near = abs(pixels - shade(colour, palette)) <= 21  # shade ±10, noise ±10, rounding
            assert near.all(-1)[item.mask].all()


@pytest.mark.parametrize("sample", range(0, 1797, 90))
def test_a_digits_mask_is_its_handwriting(sample):
    item = made("digit", sample=sample)
    assert np.array_equal((drawn([item], "deep") != drawn([], "deep")).any(-1), item.mask)
    assert np.array_equal(item.mask[43:58, 22:37], item.shape) and item.mask.sum() == item.shape.sum()


def test_only_a_digit_has_a_value():
    assert made("digit", sample=0).value == "0" and made("digit", sample=5).value == "5"
    assert made("heart").value is None


def test_the_groups_share_out_the_classes():
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(CLASSES)
    assert GROUPS["numbers"] == ("digit",)


def test_the_box_is_tight():
    for item in (item for i in range(40) for item in scene("train", i).objects):
        left, top, right, bottom = item.box
        rows, columns = np.nonzero(item.mask)
        assert (left, top, right, bottom) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_objects_never_overlap():
    for i in range(100):
        assert sum(item.mask.astype(int) for item in scene("train", i).objects).max() == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "cube"}, "'cube'"),
        ({"colour": "mauve"}, "'mauve'"),
        ({"texture": "furry"}, "'furry'"),
        ({"size": 17}, "does not fit its frame"),
        ({"left": 21}, "does not fit its frame"),
        ({"frame": (70, 40, 90, 60), "left": 72}, "does not fit its frame"),
        ({"name": "digit"}, "a digit was given sample None; digits need one"),
        ({"sample": 3}, "a heart was given sample 3; .* others none"),
        ({"name": "digit", "sample": 1797}, "digit sample 1797 is unknown"),
    ],
)
def test_impossible_objects_are_refused(change, told):
    with pytest.raises(ConfigError, match=told):
        SceneObject(**{**FITS, "frame": FRAME, **change})


def test_named_refuses_unknown_classes():
    with pytest.raises(ConfigError, match="no scene class"):
        scene("train", 0).named("cube")
