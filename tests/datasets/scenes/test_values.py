import numpy as np
import pytest

from mmlens.datasets.scenes import CLASSES, SceneObject, scene
from mmlens.datasets.scenes.draw import draw
from mmlens.datasets.scenes.values import COLOURS, PALETTE
from mmlens.errors import ConfigError

FITS = {"name": "heart", "colour": "red", "texture": "plain", "size": 15, "left": 22, "top": 43}
FRAME = (20, 40, 40, 60)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("colour", COLOURS)
def test_the_mask_is_exactly_the_pixels_drawn(name, colour):
    import random

    item = SceneObject(**{**FITS, "name": name, "colour": colour}, frame=FRAME)
    picture = draw([item], background="plain", box=None, rng=random.Random(0))
    pixels = np.asarray(picture).astype(int)
    near = (abs(pixels - np.array(PALETTE[colour])) <= 21).all(-1)  # shade ±10, noise ±10, rounding
    assert np.array_equal(near, item.mask)


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
    ],
)
def test_impossible_objects_are_refused(change, told):
    with pytest.raises(ConfigError, match=told):
        SceneObject(**{**FITS, "frame": FRAME, **change})


def test_named_refuses_unknown_classes():
    with pytest.raises(ConfigError, match="no scene class"):
        scene("train", 0).named("cube")
