from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare

from mmlens.datasets.scenes import (
    ANSWERS,
    CLASSES,
    FAMILIES,
    KINDS,
    PHRASINGS,
    SPLITS,
    as_prompt,
    ask,
    compose,
    digits,
    prompts,
    questions,
    sample,
    scene,
)
from mmlens.errors import ConfigError
from tests.datasets.scenes.truth import truth

N = 180


@pytest.fixture(scope="module")
def asked():
    return {family: list(sample("train", N, family=family)) for family in FAMILIES}


@pytest.fixture(scope="module")
def told():
    """Every question of many scenes, with its scene."""
    pictures = [scene("train", i, kind=kind) for i in range(120) for kind in KINDS]
    return [(picture, question) for picture in pictures for question in questions(picture)]


@pytest.fixture(scope="module")
def texts():
    """Many questions of the families whose words differ."""
    return {
        f: [q for _, q in sample("train", 400, family=f)] for f in ("colour", "count", "existence", "side")
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_true(family, told):
    found = [(truth(*pair), pair[1]) for pair in told if pair[1].family == family]
    assert len(found) >= 60
    for answer, question in found:
        assert question.answer == answer, question.text
        assert question.answer in ANSWERS[family]


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_every_way_of_counting_is_asked_and_true(phrasing, told):
    found = [(truth(*pair), pair[1].answer) for pair in told if pair[1].phrasing == phrasing]
    assert len(found) >= 15 and all(answer == given for answer, given in found)
    assert len({answer for answer, _ in found}) >= 5


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "digit"])
def test_answers_are_balanced(family, asked):
    counts = Counter(question.answer for _, question in asked[family])
    assert set(counts) == set(ANSWERS[family])
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_digits_are_as_frequent_as_in_the_splits_handwriting(asked):
    shares = {}
    for split in SPLITS:
        written = Counter(str(digits.value(item)) for item in digits.samples(split))
        shares[split] = np.array([written[answer] for answer in ANSWERS["digit"]]) / written.total()
        assert shares[split].max() < 0.14, "no digit may be a good guess"
    counts = Counter(question.answer for _, question in asked["digit"])
    assert chisquare([counts[a] for a in ANSWERS["digit"]], shares["train"] * N).pvalue > 1e-3


@pytest.mark.parametrize(
    ("family", "part"),
    [
        ("colour", "text"),
        ("existence", "text"),
        ("side", "text"),
        ("count", "name"),
        ("count", "phrasing"),
    ],
)
def test_the_text_does_not_tell_the_answer(family, part, texts):
    found = Counter((getattr(question, part), question.answer) for question in texts[family])
    rows, answers = (sorted(set(column)) for column in zip(*found, strict=True))
    assert len(rows) == (6 if part == "phrasing" else 9) and len(answers) == len(ANSWERS[family])
    assert chi2_contingency([[found[row, answer] for answer in answers] for row in rows]).pvalue > 1e-3


def test_two_hops_tell_only_that_the_answer_is_another_class():
    found = [question for _, question in sample("train", 400, family="hop")]
    steps = Counter((CLASSES.index(q.answer) - CLASSES.index(q.name)) % len(CLASSES) for q in found)
    assert steps[0] == 0 and chisquare([steps[step] for step in range(1, 9)]).pvalue > 1e-3


@pytest.mark.parametrize("family", ["main", "box", "digit"])
def test_families_that_name_nothing_have_one_text(family, asked):
    assert len({question.text for _, question in asked[family]}) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_foils_are_wrong_answers_of_the_same_family(family, asked):
    for _, question in asked[family]:
        assert question.foil != question.answer and question.foil in ANSWERS[family]


def test_foils_come_from_the_scene_where_it_offers_one(told):
    seen = Counter()
    for picture, question in told:
        classes = {item.name for item in picture.objects}
        offered = {
            "main": classes,
            "box": classes,
            "colour": {item.colour for item in picture.objects},
            "hop": classes - {question.name},
        }.get(question.family, set()) - {question.answer}
        if offered:
            assert question.foil in offered, question.family
            seen[question.family] += 1
        if question.family == "count":
            assert abs(int(question.foil) - int(question.answer)) == 1
    assert set(seen) == {"main", "box", "colour", "hop"}


def test_regions_are_what_the_question_is_about(told):
    for picture, question in told:
        regions = question.regions
        about = picture.named(question.name) if question.name else ()
        if question.family == "hop":
            assert set(regions) == {"object", "via"} and regions["via"] == about
            (found,) = regions["object"]
            assert found.name == question.answer and found.colour == about[0].colour
        elif question.family in ("main", "box", "digit"):
            digit = next((i for i, item in enumerate(picture.objects) if item.name == "digit"), None)
            place = {"main": 0, "box": picture.boxed, "digit": digit}[question.family]
            assert regions == {"object": (picture.objects[place],)}
        else:
            assert regions == ({"object": about} if about else {})
            assert bool(about) == (question.answer != "no")


def test_a_hop_has_exactly_one_right_answer(told):
    found = [(picture, question) for picture, question in told if question.family == "hop"]
    for picture, question in found:
        (via,) = picture.named(question.name)
        assert sum(item.colour == via.colour for item in picture.objects) == 2
    assert {picture.kind for picture, _ in found} >= {"single", "matched"}


def test_questions_are_always_the_same_ones_in_the_order_of_the_families():
    picture = scene("train", 5)
    assert questions(picture) == questions(picture)
    families = [q.family for q in questions(picture)]
    assert families == sorted(families, key=FAMILIES.index)


def test_asking_gives_the_question_that_the_scene_lists(told):
    for picture, question in told:
        assert ask(picture, question.family, question.name, question.phrasing) == question
        if question.phrasing == "object":
            plain = ask(picture, "count", question.name)
            assert replace(plain, foil=question.foil) == question


def scene_where(kind, wanted):
    return next(s for s in (scene("train", i, kind=kind) for i in range(500)) if wanted(s))


def unanswerable():
    """(what is wrong, scene, family, name, phrasing)."""
    multi = scene_where(
        "multi", lambda s: s.boxed is not None and s.objects[s.boxed].name != s.objects[0].name
    )
    first, second = multi.objects[0].name, multi.objects[-1].name
    single = scene_where("single", lambda s: s.boxed is None and s.objects[0].frame[0] == 20)
    main = single.objects[0].name
    red = compose([("red", name) for name in ("ring", "star", "moon")] + [("blue", "heart")] * 2)
    yield "no main object", multi, "main", "", ""
    yield "two of the class", red, "colour", "heart", ""
    yield "none of the class", red, "colour", "cross", ""
    yield "no class named", red, "colour", "", ""
    yield "not a multi scene", single, "count", main, ""
    yield "not the counted class", multi, "count", second, ""
    yield "nothing named to count", multi, "count", "", ""
    yield "other objects there", multi, "count", first, "general"
    yield "box elsewhere", multi, "count", first, "boxed object"
    yield "box elsewhere", multi, "count", first, "boxed super"
    yield "box elsewhere", multi, "count", first, "boxed general"
    yield "no class named", red, "existence", "", ""
    yield "no box", single, "box", "", ""
    yield "across the middle", single, "side", main, ""
    yield "two of the class", red, "side", "heart", ""
    yield "no digit", red, "digit", "", ""
    yield "two digits", compose([("red", "digit")] * 2), "digit", "", ""
    yield "two of its colour", red, "hop", "ring", ""
    yield "two of the class", red, "hop", "heart", ""
    yield "none of the class", red, "hop", "cross", ""
    yield "none of its colour", compose([("red", "ring"), ("blue", "star")]), "hop", "ring", ""
    yield "no class named", red, "hop", "", ""


def test_questions_without_one_right_answer_are_not_asked():
    cases = list(unanswerable())
    assert {family for _, _, family, _, _ in cases} == set(FAMILIES)
    for why, picture, family, name, phrasing in cases:
        assert ask(picture, family, name, phrasing) is None, (why, family)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("smell",), "family 'smell' is unknown; the families are main, colour"),
        (("colour", "cube"), "'cube' is no scene class; the classes are circle"),
        (("count", "ring", "loud"), "phrasing 'loud' is unknown; the phrasings are object, super"),
    ],
)
def test_questions_in_unknown_words_are_refused(arguments, told):
    with pytest.raises(ConfigError, match=told):
        ask(scene("train", 0), *arguments)


def test_prompts_are_ready_for_a_model():
    for family in ("existence", "hop"):
        found = prompts("heldout", 3, family=family, seed=2)
        wanted = list(sample("heldout", 3, family=family, seed=2))
        for prompt, (picture, question) in zip(found, wanted, strict=True):
            given = (prompt.question, prompt.answer, prompt.foil)
            assert given == (question.text, question.answer, question.foil)
            assert prompt.image.tobytes() == picture.image.tobytes()
            assert set(prompt.regions) == set(question.regions)
            assert ("object" in prompt.regions) == (prompt.answer != "no")
            for name, objects in question.regions.items():
                for region, item in zip(prompt.regions[name], objects, strict=True):
                    assert np.array_equal(region.mask, item.mask)


def test_a_counting_prompt_marks_every_counted_object():
    picture = scene_where("multi", lambda s: len(s.named(s.objects[0].name)) == 7)
    prompt = as_prompt(picture, ask(picture, "count", picture.objects[0].name, "super"))
    assert prompt.answer == "7" and len(prompt.regions["object"]) == 7


def test_fewer_prompts_are_the_first_of_more():
    assert [p.answer for p in prompts("train", 2)] == [p.answer for p in prompts("train", 4)[:2]]
    assert prompts("train", 0) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"n": -1}, "-1 prompts were asked for"),
        ({"n": 1, "family": "smell"}, "'smell' is unknown; the families are main, colour"),
        ({"n": 1, "split": "test"}, "split 'test' is unknown"),
    ],
)
def test_impossible_requests_are_refused(arguments, told):
    with pytest.raises(ConfigError, match=told):
        prompts(**{"split": "train", **arguments})
