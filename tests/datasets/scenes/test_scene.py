import numpy as np
import pytest
from scipy.stats import chisquare

from mmlens.datasets.scenes import CLASSES, KINDS, SPLITS, scene, split_of
from mmlens.errors import ConfigError

GOLDEN = [
    ("multi", 4, "ring", "red"),
    ("single", 1, "ring", "yellow"),
    ("multi", 2, "cross", "purple"),
    ("multi", None, "ring", "red"),
]


def content(picture):
    return (picture.kind, picture.objects, picture.boxed, picture.background, picture.image.tobytes())


@pytest.mark.parametrize("split", SPLITS)
def test_equal_arguments_give_equal_scenes_and_other_arguments_others(split):
    assert content(scene(split, 7, seed=3)) == content(scene(split, 7, seed=3))
    others = [scene(split, 8, seed=3), scene(split, 7, seed=4), scene(split, 7, seed=3, kind="multi")]
    assert all(content(other) != content(scene(split, 7, seed=3)) for other in others)


def test_the_dataset_is_still_the_one_the_shipped_weights_were_trained_on():
    found = [scene("train", i) for i in range(4)]
    assert [(s.kind, s.boxed, s.objects[0].name, s.objects[0].colour) for s in found] == GOLDEN


def test_splits_are_disjoint_whatever_the_seed():
    pictures = {}
    for split in SPLITS:
        found = [scene(split, i, seed=seed) for seed in (0, 1) for i in range(150)]
        assert {split_of(picture.objects) for picture in found} == {split}
        pictures[split] = {picture.image.tobytes() for picture in found}
        assert len(pictures[split]) == 300
    assert not pictures["train"] & pictures["heldout"] and not pictures["train"] & pictures["attribution"]


def test_split_of_ignores_order_texture_and_shift():
    picture = scene("heldout", 0, kind="multi")
    assert split_of(picture.objects[::-1]) == "heldout"


def test_kinds_are_what_they_say():
    for i in range(60):
        main, *rest = scene("train", i, kind="single").objects
        assert all(main.size > 1.4 * other.size for other in rest)
        assert len({item.name for item in (main, *rest)}) == 1 + len(rest)
        counted, *_ = multi = scene("train", i, kind="multi").objects
        assert 1 <= sum(item.name == counted.name for item in multi) <= 7
        names = {item.name for item in multi}
        assert len({(item.name, item.colour) for item in multi}) == len(names) in (2, 3)
    assert {scene("train", i).kind for i in range(30)} == set(KINDS)


def test_classes_are_equally_frequent():
    names = [scene("train", i, kind="single").objects[0].name for i in range(800)]
    assert chisquare([names.count(name) for name in CLASSES]).pvalue > 1e-3


def test_images_are_small_rgb_bytes():
    assert np.asarray(scene("attribution", 0).image).shape == (80, 80, 3)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"split": "test", "index": 0}, "split 'test' is unknown; the splits are train, attr"),
        ({"split": "train", "index": -1}, "index -1 is negative"),
        ({"split": "train", "index": 0, "kind": "huge"}, "kind 'huge' is unknown; the kinds are single"),
    ],
)
def test_impossible_scenes_are_refused(arguments, told):
    with pytest.raises(ConfigError, match=told):
        scene(**arguments)
