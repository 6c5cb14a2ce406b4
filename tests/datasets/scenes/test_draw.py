from dataclasses import replace

import numpy as np
import pytest

from mmlens.datasets.scenes import PALETTES, SceneObject
from mmlens.datasets.scenes.draw import BOX_COLOUR, draw, shade
from mmlens.datasets.scenes.values import BACKGROUNDS, COLOURS, LINE, SIZE

STAR = SceneObject(
    name="star", colour="red", texture="striped", size=30, left=23, top=44, frame=(20, 40, 60, 80)
)
RING = SceneObject(
    name="ring", colour="black", texture="plain", size=16, left=62, top=2, frame=(60, 0, 80, 20)
)
DIGIT = SceneObject(
    name="digit",
    colour="blue",
    texture="dotted",
    size=15,
    left=3,
    top=2,
    frame=(0, 0, 20, 20),
    sample=7,
)
OBJECTS = (STAR, RING, DIGIT)


def pixels(objects=OBJECTS, background="striped", box=None, key="k", palette="plain"):
    image = draw(objects, background=background, box=box, key=key, palette=palette)
    return np.asarray(image).astype(int)


def changed(one, other):
    return (one != other).any(-1)


def line(box):
    left, top, right, bottom = box
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top:bottom, left:right] = True
    mask[top + LINE : bottom - LINE, left + LINE : right - LINE] = False
    return mask


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_backgrounds_stay_clear_of_every_object_colour(background):
    for seed in range(10):
        drawn = pixels([], background, key=f"{seed}")
        assert drawn.shape == (SIZE, SIZE, 3)
        assert np.ptp(drawn, axis=-1).max() <= 45, "the background must be nearly grey"
        assert drawn.min() > 37 and drawn.max() < 225, "and lie between black and white objects"


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize("objects", [(), OBJECTS])
def test_a_box_is_a_line_inside_its_rectangle(objects, palette):
    drawn = pixels(objects, box=STAR.frame, palette=palette)
    near = (abs(drawn - np.array(BOX_COLOUR)) <= 10).all(-1)
    assert np.array_equal(near, line(STAR.frame))


@pytest.mark.parametrize(
    "change",
    [
        {"colour": "green"},
        {"texture": "dotted"},
        {"name": "moon"},
        {"name": "digit", "sample": 11},
        {"size": 24},
        {"left": 27},
    ],
)
def test_altering_one_object_alters_only_its_pixels(change):
    other = replace(STAR, **change)
    found = changed(pixels(), pixels((other, RING, DIGIT)))
    assert found.any() and not (found & ~(STAR.mask | other.mask)).any()


def test_leaving_one_object_out_alters_exactly_its_pixels():
    for gone in OBJECTS:
        rest = [item for item in OBJECTS if item is not gone]
        assert np.array_equal(changed(pixels(), pixels(rest)), gone.mask)


def test_a_box_alters_exactly_its_line():
    assert np.array_equal(changed(pixels(), pixels(box=RING.frame)), line(RING.frame))


def test_background_and_palette_alter_nothing_of_each_other():
    shown = np.any([item.mask for item in OBJECTS], 0)
    assert not changed(pixels(), pixels(background="plain"))[shown].any()
    assert changed(pixels(), pixels(background="plain"))[~shown].any()
    for palette in PALETTES[1:]:
        found = changed(pixels(), pixels(palette=palette))
        assert not (found & ~shown).any() and found[shown].mean() > 0.9


def test_order_does_not_matter_and_the_key_does():
    assert np.array_equal(pixels(), pixels(OBJECTS[::-1]))
    assert changed(pixels(), pixels(key="another")).mean() > 0.9


@pytest.mark.parametrize("palette", PALETTES)
def test_colours_of_a_palette_stay_apart(palette):
    found = [shade(colour, palette) for colour in COLOURS]
    for i, one in enumerate(found):
        assert all(abs(one - other).max() > 45 for other in found[:i]), "shade and noise are 20 at most"


def test_palettes_are_what_they_say():
    red = np.array((214, 40, 40))
    assert np.array_equal(shade("red", "plain"), red)
    assert np.allclose(shade("red", "muted"), red + (128 - red) / 5, atol=1e-4)
    assert np.allclose(shade("red", "deep"), red * 0.82, atol=1e-4)
