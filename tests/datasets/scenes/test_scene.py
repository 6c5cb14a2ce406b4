import zlib
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binomtest, chisquare

from mmlens.datasets.scenes import (
    CLASSES,
    COLOURS,
    GROUPS,
    KINDS,
    PALETTES,
    SPLITS,
    digits,
    questions,
    scene,
    split_of,
)
from mmlens.datasets.scenes.scene import ALONE_CHANCE, BOX_CHANCE
from mmlens.datasets.scenes.values import BACKGROUNDS
from mmlens.errors import ConfigError

GOLDEN = [
    ("matched", 5, "plain", "striped", 2188413183, "Which object has the colour of the triangle?"),
    ("single", 0, "plain", "striped", 1437518011, "Which side is the triangle on?"),
    ("multi", 0, "plain", "gradient", 406130211, "Which side is the square on?"),
    ("multi", None, "deep", "gradient", 497969716, "Is there a triangle in the image?"),
    ("matched", None, "muted", "gradient", 3223262796, "Which object has the colour of the triangle?"),
]


@pytest.fixture(scope="module")
def shown():
    return {kind: [scene("train", i, kind=kind) for i in range(500)] for kind in KINDS}


def content(picture):
    style = (picture.boxed, picture.background, picture.palette)
    return (picture.kind, picture.objects, *style, picture.image.tobytes())


@pytest.mark.parametrize("split", SPLITS)
def test_equal_arguments_give_equal_scenes_and_other_arguments_others(split):
    assert content(scene(split, 7, seed=3)) == content(scene(split, 7, seed=3))
    others = [scene(split, 8, seed=3), scene(split, 7, seed=4), scene(split, 7, seed=3, kind="multi")]
    assert all(content(other) != content(scene(split, 7, seed=3)) for other in others)


def test_the_dataset_is_still_the_one_the_shipped_weights_were_trained_on():
    for i, golden in enumerate(GOLDEN):
        s = scene("train", i)
        pixels = zlib.crc32(s.image.tobytes())
        assert (s.kind, s.boxed, s.palette, s.background, pixels, questions(s)[-1].text) == golden


def test_splits_are_disjoint_whatever_the_seed():
    pictures, written = {}, {}
    for split in SPLITS:
        found = [scene(split, i, seed=seed) for seed in (0, 1) for i in range(150)]
        assert {split_of(picture.objects) for picture in found} == {split}
        pictures[split] = {picture.image.tobytes() for picture in found}
        assert len(pictures[split]) == 300
        written[split] = {item.sample for picture in found for item in picture.named("digit")}
        assert len(written[split]) > 100 and written[split] <= set(digits.samples(split))
    assert not pictures["train"] & pictures["heldout"] and not pictures["train"] & pictures["attribution"]


def test_split_of_ignores_order_texture_and_shift():
    picture = scene("heldout", 0, kind="multi")
    assert split_of(picture.objects[::-1]) == "heldout"


def test_a_single_scene_has_one_large_object_and_up_to_three_small_ones(shown):
    for picture in shown["single"]:
        main, *rest = picture.objects
        assert main.frame[2] - main.frame[0] == 40 and {o.frame[2] - o.frame[0] for o in rest} <= {20}
        assert all(main.size > 1.4 * other.size for other in rest)
        assert len({item.name for item in picture.objects}) == len(picture.objects)
    assert {len(picture.objects) for picture in shown["single"]} == {1, 2, 3, 4}


def test_a_multi_scene_has_one_or_two_classes_of_different_groups_each_of_one_colour(shown):
    for picture in shown["multi"]:
        counts = Counter(item.name for item in picture.objects)
        first, *second = counts
        assert 1 <= counts[first] <= 7 and len(second) <= 1 and all(1 <= counts[name] <= 4 for name in second)
        assert len({(item.name, item.colour) for item in picture.objects}) == len(counts)
        assert all(len(set(names) & set(counts)) <= 1 for names in GROUPS.values())
    alone = sum(len({item.name for item in picture.objects}) == 1 for picture in shown["multi"])
    assert binomtest(alone, 500, ALONE_CHANCE).pvalue > 1e-3


def test_a_matched_scene_has_six_classes_in_three_colours_two_of_each(shown):
    for picture in shown["matched"]:
        assert len(picture.objects) == 6 == len({item.name for item in picture.objects})
        assert sorted(Counter(item.colour for item in picture.objects).values()) == [2, 2, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_small_objects_lie_in_slots_of_their_own_and_digits_are_never_tiny(kind, shown):
    for item in (item for picture in shown[kind] for item in picture.objects):
        assert all(edge % (10 if item.frame[2] - item.frame[0] == 40 else 20) == 0 for edge in item.frame)
        assert item.name != "digit" or item.size >= 15
    for picture in shown[kind][:100]:
        assert sum(item.mask.astype(int) for item in picture.objects).max() == 1


def test_kinds_are_drawn_equally_often():
    assert chisquare([*Counter(scene("train", i).kind for i in range(300)).values()]).pvalue > 1e-3


@pytest.mark.parametrize(("kind", "place"), [("single", 0), ("multi", 0), ("multi", -1), ("matched", 0)])
def test_classes_and_colours_are_equally_frequent(kind, place, shown):
    chosen = [picture.objects[place] for picture in shown[kind]]
    for names, known in (([o.name for o in chosen], CLASSES), ([o.colour for o in chosen], COLOURS)):
        assert chisquare([names.count(name) for name in known]).pvalue > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_styles_and_boxes_are_drawn_independently(kind, shown):
    for name, known in (("palette", PALETTES), ("background", BACKGROUNDS)):
        values = [getattr(picture, name) for picture in shown[kind]]
        assert chisquare([values.count(value) for value in known]).pvalue > 1e-3
    boxed = [picture.boxed is not None for picture in shown[kind]]
    assert binomtest(sum(boxed), len(boxed), BOX_CHANCE).pvalue > 1e-3


def test_a_box_takes_each_class_of_a_scene_equally_often_whatever_its_number(shown):
    two = [s for s in shown["multi"] if len({o.name for o in s.objects}) == 2 and s.boxed is not None]
    first = sum(s.objects[s.boxed].name == s.objects[0].name for s in two)
    assert len(two) > 200 and binomtest(first, len(two), 0.5).pvalue > 1e-3


def test_images_are_small_rgb_bytes():
    assert np.asarray(scene("attribution", 0).image).shape == (80, 80, 3)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"split": "test", "index": 0}, "split 'test' is unknown; the splits are train, attr"),
        ({"split": "train", "index": -1}, "index -1 is negative"),
        ({"split": "train", "index": 0, "kind": "huge"}, "kind 'huge' is unknown; the kinds are single"),
        ({"split": "train", "index": 0, "kind": "composed"}, "kind 'composed' is unknown"),
    ],
)
def test_impossible_scenes_are_refused(arguments, told):
    with pytest.raises(ConfigError, match=told):
        scene(**arguments)
