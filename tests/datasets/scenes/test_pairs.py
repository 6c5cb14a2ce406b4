from functools import cache

import numpy as np
import pytest

from mmlens.datasets.scenes import (
    CHANGES,
    FAMILIES,
    SPLITS,
    STYLES,
    ask,
    digits,
    pair,
    paired_prompts,
    questions,
    scene,
    split_of,
)
from mmlens.datasets.scenes.draw import BOX_COLOUR
from mmlens.errors import ConfigError
from tests.datasets.scenes.truth import truth

CHANGED = [
    ("object", "main"),
    ("object", "box"),
    ("object", "existence"),
    ("object", "hop"),
    ("colour", "colour"),
    ("count", "count"),
]
RESTYLED = [(style, family) for style in STYLES for family in FAMILIES]


@cache
def pairs(change, family, split="heldout"):
    """The pairs that start from the first scenes of a split."""
    found = [pair(split, i, change=change, family=family, seed=1) for i in range(16)]
    return [made for made in found if made is not None]


def changed(made):
    return (np.asarray(made.scene.image) != np.asarray(made.other.image)).any(-1)


def swapped(made):
    """The objects that one of the two scenes has and the other has not."""
    one, other = made.scene.objects, made.other.objects
    return [item for item in one if item not in other], [item for item in other if item not in one]


def covered(objects):
    return np.any([item.mask for item in objects], axis=0)


def looks(item):
    return item.name, item.colour, item.size, item.sample


def content(made):
    texts = made.question, made.other_question
    pictures = [(s.objects, s.boxed, s.image.tobytes()) for s in (made.scene, made.other)]
    return made.change, *texts, *pictures


@pytest.mark.parametrize(("change", "family"), CHANGED + RESTYLED)
def test_both_questions_say_the_same_and_both_answers_are_true(change, family):
    found = pairs(change, family)
    assert len(found) >= 3
    for made in found:
        one, two = made.question, made.other_question
        assert one.text == two.text and one.family == two.family == family and made.change == change
        assert (one.answer != two.answer) == (change in CHANGES)
        assert one.answer == truth(made.scene, one) and two.answer == truth(made.other, two)
        assert two == ask(made.other, family, two.name, two.phrasing)


@pytest.mark.parametrize(("change", "family"), CHANGED + RESTYLED)
def test_the_first_scene_is_the_datasets_own_and_both_are_of_one_split(change, family):
    kind = {"main": "single", "count": "multi", "hop": "matched"}.get(family)
    for made in pairs(change, family):
        own = scene("heldout", made.scene.index, seed=1, kind=kind)
        assert own.image.tobytes() == made.scene.image.tobytes() and own.objects == made.scene.objects
        assert made.question in questions(own)
        assert split_of(made.other.objects) == made.other.split == "heldout"
        written = {item.sample for item in made.other.named("digit")}
        assert written <= set(digits.samples("heldout"))
        assert sum(item.mask.astype(int) for item in made.other.objects).max() == 1


@pytest.mark.parametrize("split", SPLITS)
def test_digits_that_come_in_are_of_the_splits_handwriting(split):
    came = [new for made in pairs("object", "box", split) for new in swapped(made)[1]]
    came += [new for made in pairs("object", "hop", split) for new in swapped(made)[1]]
    samples = {item.sample for item in came if item.name == "digit"}
    assert samples and samples <= set(digits.samples(split))


@pytest.mark.parametrize(("change", "family"), [case for case in CHANGED if case[0] != "count"])
def test_a_new_object_takes_the_place_of_the_one_asked_about(change, family):
    for made in pairs(change, family):
        (gone,), (came,) = swapped(made)
        assert made.question.regions["object"] == (gone,) and came.frame == gone.frame
        assert (came.name != gone.name) == (change == "object")
        assert (came.colour != gone.colour) == (change == "colour")
        assert came.name not in [item.name for item in made.scene.objects] or change == "colour"
        assert made.other.objects.index(came) == made.scene.objects.index(gone)
        if came.name != "digit":
            keep = ("size", "left", "top", "texture")
            assert all(getattr(came, name) == getattr(gone, name) for name in keep)


def test_a_count_changes_by_one_object_of_the_counted_class():
    steps = set()
    for split in SPLITS:
        for made in pairs("count", "count", split):
            gone, came = swapped(made)
            (item,) = gone + came
            assert item.name == made.question.name
            steps.add(int(made.other_question.answer) - int(made.question.answer))
            assert len(came) - len(gone) == int(made.other_question.answer) - int(made.question.answer)
            before, after = made.scene.boxed, made.other.boxed
            assert (before is None) == (after is None)
            assert before is None or made.scene.objects[before] == made.other.objects[after]
    assert steps == {-1, 1}


@pytest.mark.parametrize(("change", "family"), CHANGED)
def test_only_pixels_of_the_changed_object_change(change, family):
    boxed = 0
    for made in pairs(change, family):
        gone, came = swapped(made)
        found = changed(made)
        assert found.any() and not (found & ~covered(gone + came)).any()
        if change != "object":
            assert np.array_equal(found, covered(gone + came)), "every pixel of it changes"
        if made.scene.boxed is not None and change != "count":
            line = (abs(np.asarray(made.other.image).astype(int) - BOX_COLOUR) <= 10).all(-1)
            assert line.sum() == 4 * 2 * (
                made.other.objects[made.scene.boxed].frame[2]
                - made.other.objects[made.scene.boxed].frame[0]
                - 2
            )
            boxed += 1
    assert boxed >= 3 or change == "count", "boxes must be among what was looked at"


@pytest.mark.parametrize("family", FAMILIES)
def test_another_texture_comes_with_another_background_and_moves_nothing(family):
    for made in pairs("texture", family):
        for one, other in zip(made.scene.objects, made.other.objects, strict=True):
            assert one.texture != other.texture and looks(one) == looks(other)
            assert (one.frame, one.left, one.top) == (other.frame, other.left, other.top)
        assert made.scene.background != made.other.background
        assert (made.scene.palette, made.scene.boxed) == (made.other.palette, made.other.boxed)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_palette_changes_nothing_but_the_objects_shades(family):
    for made in pairs("palette", family):
        assert made.scene.palette != made.other.palette and made.scene.objects == made.other.objects
        assert (made.scene.background, made.scene.boxed) == (made.other.background, made.other.boxed)
        found, objects = changed(made), covered(made.scene.objects)
        assert not (found & ~objects).any() and found[objects].mean() > 0.9


@pytest.mark.parametrize("family", FAMILIES)
def test_another_position_keeps_every_objects_looks(family):
    moved = []
    for made in pairs("position", family):
        for one, other in zip(made.scene.objects, made.other.objects, strict=True):
            assert looks(one) == looks(other) and one.texture == other.texture
            moved.append(one.frame != other.frame)
        style = [(s.palette, s.background, s.boxed) for s in (made.scene, made.other)]
        assert style[0] == style[1]
    assert np.mean(moved) > 0.7


@pytest.mark.parametrize(("change", "family"), [*CHANGES.items(), *((style, "main") for style in STYLES)])
def test_equal_arguments_give_equal_pairs_and_families_have_defaults(change, family):
    for made in pairs(change, family)[:4]:
        index = made.scene.index
        again = pair("heldout", index, change=change, seed=1)
        assert content(again) == content(made)
        others = [pair("heldout", index, change=change, seed=seed) for seed in range(2, 6)]
        assert all(content(other) != content(made) for other in others if other is not None)


def test_after_a_change_each_answer_is_the_others_foil():
    for change, family in CHANGED:
        for made in pairs(change, family):
            one, two = made.prompts()
            assert (one.answer, one.foil) == (two.foil, two.answer)
            assert one.question == two.question and one.answer == made.question.answer


def test_after_a_restyle_answers_and_foils_are_the_same():
    for style, family in RESTYLED:
        for made in pairs(style, family):
            one, two = made.prompts()
            assert (one.answer, one.foil) == (two.answer, two.foil)


def test_prompts_of_a_pair_show_both_scenes_and_mark_both_objects():
    made = pairs("object", "main")[0]
    one, two = made.prompts()
    for prompt, picture, question in (
        (one, made.scene, made.question),
        (two, made.other, made.other_question),
    ):
        assert prompt.image.tobytes() == picture.image.tobytes()
        (region,), (item,) = prompt.regions["object"], question.regions["object"]
        assert np.array_equal(region.mask, item.mask)


def test_paired_prompts_are_the_first_pairs():
    wanted = [made.prompts() for made in pairs("colour", "colour")[:3]]
    found = paired_prompts("heldout", 3, change="colour", seed=1)
    told = [[(p.question, p.answer, p.foil, p.image.tobytes()) for p in both] for both in found]
    assert told == [[(p.question, p.answer, p.foil, p.image.tobytes()) for p in both] for both in wanted]
    assert paired_prompts("heldout", 0, change="colour") == []


def test_scenes_that_cannot_be_asked_give_no_pair():
    bare = next(i for i in range(30) if scene("train", i).boxed is None)
    assert pair("train", bare, change="palette", family="box") is None
    absent = [pair("train", i, change="object", family="existence") for i in range(30)]
    assert None in absent
    assert {made.question.answer for made in absent if made is not None} == {"yes"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"change": "smell"}, "change 'smell' is unknown; there are object, colour, count, texture"),
        ({"change": "object", "family": "smell"}, "family 'smell' is unknown; the families are main"),
        ({"change": "count", "family": "main"}, "changing the count does not change .* 'main'.*; ask count"),
        ({"change": "object", "family": "digit"}, "does not change .* 'digit'.*; ask main, box, exist"),
        ({"change": "colour", "split": "test"}, "split 'test' is unknown"),
        ({"change": "colour", "n": -2}, "-2 pairs were asked for; ask for 0 or more"),
    ],
)
def test_impossible_pairs_are_refused(arguments, told):
    with pytest.raises(ConfigError, match=told):
        paired_prompts(**{"split": "train", "n": 1, **arguments})
    if "n" not in arguments:
        with pytest.raises(ConfigError, match=told):
            pair(**{"split": "train", "index": 0, **arguments})
