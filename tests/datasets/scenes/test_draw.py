import random

import numpy as np
import pytest

from mmlens.datasets.scenes.draw import BOX_COLOUR, draw
from mmlens.datasets.scenes.values import BACKGROUNDS, LINE, SIZE


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_backgrounds_stay_clear_of_every_object_colour(background):
    for seed in range(10):
        pixels = np.asarray(draw([], background=background, box=None, rng=random.Random(seed))).astype(int)
        assert pixels.shape == (SIZE, SIZE, 3)
        assert np.ptp(pixels, axis=-1).max() <= 45, "the background must be nearly grey"
        assert pixels.min() > 37 and pixels.max() < 225, "and lie between black and white objects"


def test_a_box_is_a_line_inside_its_rectangle():
    rectangle = (20, 40, 60, 80)
    pixels = np.asarray(draw([], background="plain", box=rectangle, rng=random.Random(0))).astype(int)
    line = np.zeros((SIZE, SIZE), bool)
    line[40:80, 20:60] = True
    line[40 + LINE : 80 - LINE, 20 + LINE : 60 - LINE] = False
    assert np.array_equal((abs(pixels - np.array(BOX_COLOUR)) <= 10).all(-1), line)
