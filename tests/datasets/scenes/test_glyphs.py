import numpy as np
import pytest

from mmlens.datasets.scenes import CLASSES
from mmlens.datasets.scenes.glyphs import glyph

SIZES = range(13, 36)
SHAPES = [name for name in CLASSES if name != "digit"]


def test_all_classes_but_the_digit_are_shapes():
    assert len(SHAPES) == len(CLASSES) - 1 == 8


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_fills_its_square(name):
    for size in SIZES:
        shape = glyph(name, size)
        assert shape.shape == (size, size)
        extent = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
        sides = [(line[-1] - line[0] + 1) / size for line in extent]
        assert max(sides) >= 0.8 and min(sides) >= 0.6


@pytest.mark.parametrize("size", SIZES)
def test_shapes_differ_by_more_than_a_tenth_of_the_square(size):
    shapes = [glyph(name, size) for name in SHAPES]
    for i, one in enumerate(shapes):
        for other in shapes[:i]:
            assert (one != other).mean() > 0.1


def test_shared_masks_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        glyph("ring", 13)[0, 0] = True
