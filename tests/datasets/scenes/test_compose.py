import pytest

from mmlens.datasets.scenes import CLASSES, COLOURS, SPLITS, ask, compose, digits, split_of
from mmlens.errors import ConfigError

WANTED = [("red", "ring"), ("red", "digit"), ("blue", "star"), ("blue", "star")]


def content(picture):
    style = (picture.boxed, picture.background, picture.palette)
    return (picture.objects, *style, picture.image.tobytes())


@pytest.mark.parametrize("split", SPLITS)
def test_the_scene_has_exactly_the_objects_asked_for_in_the_split(split):
    for seed in range(8):
        picture = compose(WANTED, split=split, seed=seed)
        assert [(item.colour, item.name) for item in picture.objects] == WANTED
        assert picture.kind == "composed" and picture.split == split == split_of(picture.objects)
        assert picture.objects[1].sample in digits.samples(split)
        assert sum(item.mask.astype(int) for item in picture.objects).max() == 1


def test_equal_arguments_give_equal_scenes():
    assert content(compose(WANTED, seed=4)) == content(compose(WANTED, seed=4))
    assert compose(WANTED, seed=4).objects != compose(WANTED, seed=5).objects
    assert compose(WANTED, seed=4).objects != compose(WANTED[::-1], seed=4).objects[::-1]


def test_the_style_leaves_the_layout_as_it_is():
    plain = compose(WANTED, seed=1)
    other = compose(WANTED, seed=1, background="checked", palette="muted", boxed=2)
    assert plain.objects == other.objects and plain.image.tobytes() != other.image.tobytes()
    assert (other.background, other.palette, other.boxed) == ("checked", "muted", 2)
    assert (plain.background, plain.palette, plain.boxed) == ("plain", "plain", None)


def test_a_full_picture_holds_sixteen_objects():
    wanted = [(COLOURS[i % 8], CLASSES[i % 9]) for i in range(16)]
    picture = compose(wanted, split="attribution")
    assert len({item.frame for item in picture.objects}) == 16
    assert [(item.colour, item.name) for item in picture.objects] == wanted


def test_a_composed_scene_can_be_asked_about():
    picture = compose(WANTED, boxed=0)
    digit = picture.objects[1]
    asked = {"colour": "ring", "hop": "ring", "existence": "moon", "box": "", "digit": ""}
    found = {family: ask(picture, family, name).answer for family, name in asked.items()}
    assert found == {
        "colour": "red",
        "hop": "digit",
        "existence": "no",
        "box": "ring",
        "digit": digit.value,
    }


@pytest.mark.parametrize(
    ("wanted", "more", "told"),
    [
        ([], {}, "0 objects were asked for; a scene holds 1 to 16"),
        ([("red", "ring")] * 17, {}, "17 objects were asked for"),
        ([("mauve", "ring")], {}, "colour 'mauve' is unknown; the colours are red"),
        ([("red", "cube")], {}, "'cube' is no scene class; the classes are circle"),
        (WANTED, {"split": "test"}, "split 'test' is unknown; there are train"),
        (WANTED, {"background": "paper"}, "background 'paper' is unknown; there are plain"),
        (WANTED, {"palette": "neon"}, "palette 'neon' is unknown; there are plain, muted"),
        (WANTED, {"boxed": 4}, "object 4 is to be boxed; the objects are numbered 0 to 3"),
        (WANTED, {"boxed": -1}, "object -1 is to be boxed"),
    ],
)
def test_impossible_wishes_are_refused(wanted, more, told):
    with pytest.raises(ConfigError, match=told):
        compose(wanted, **more)


def test_a_split_that_has_no_such_layout_says_so():
    with pytest.raises(ConfigError, match=r"no layout of .*green.*moon.* was found in split 'heldout'"):
        compose([("green", "moon")])
    assert compose([("green", "moon")], split="train").split == "train"
