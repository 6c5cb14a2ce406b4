from collections import Counter

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare

from mmlens.datasets.scenes import ANSWERS, CLASSES, FAMILIES, prompts, questions, sample, scene
from mmlens.errors import ConfigError

N = 250


@pytest.fixture(scope="module")
def asked():
    return {family: list(sample("heldout", N, family=family)) for family in FAMILIES}


def named_in(text):
    return next(name for name in CLASSES if f" {name}" in text)


def truth(picture, question):
    """The answer, worked out from the pixels' masks alone."""
    family = question.family
    if family == "main":
        return max(picture.objects, key=lambda item: item.mask.sum() / np.prod(item.mask.shape)).name
    if family == "box":
        return picture.objects[picture.boxed].name
    same = [item for item in picture.objects if item.name == named_in(question.text)]
    if family == "count":
        return str(len(same))
    if family == "existence":
        return "yes" if same else "no"
    if family == "colour":
        return same[0].colour
    return "left" if np.nonzero(same[0].mask)[1].mean() < 39.5 else "right"


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_true(family, asked):
    for picture, question in asked[family]:
        if family == "main":  # a thin ring may cover less than a small square: go by the box instead
            widths = {item.name: item.box[2] - item.box[0] for item in picture.objects}
            assert question.answer == max(widths, key=widths.__getitem__)
        else:
            assert question.answer == truth(picture, question)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_balanced(family, asked):
    counts = Counter(question.answer for _, question in asked[family])
    assert set(counts) == set(ANSWERS[family])
    assert chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize("family", ["colour", "count", "existence", "side"])
def test_the_text_does_not_tell_the_answer(family):
    pairs = [(q.text, q.answer) for _, q in sample("train", 1000, family=family)]
    texts, answers = (sorted(set(column)) for column in zip(*pairs, strict=True))
    found = Counter(pairs)
    assert chi2_contingency([[found[t, a] for a in answers] for t in texts]).pvalue > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_foils_are_wrong_answers_of_the_same_family(family, asked):
    for _, question in asked[family]:
        assert question.foil != question.answer and question.foil in ANSWERS[family]


def test_foils_come_from_the_scene_where_it_offers_one(asked):
    for picture, question in asked["main"]:
        others = {item.name for item in picture.objects[1:]}
        assert not others or question.foil in others


def test_questions_are_always_the_same_ones():
    picture = scene("train", 5)
    assert questions(picture) == questions(picture)
    assert [q.family for q in questions(picture)] == sorted(
        (q.family for q in questions(picture)), key=FAMILIES.index
    )


def test_prompts_are_ready_for_a_model():
    found = prompts("heldout", 3, family="existence", seed=2)
    wanted = list(sample("heldout", 3, family="existence", seed=2))
    for prompt, (picture, question) in zip(found, wanted, strict=True):
        told = (prompt.question, prompt.answer, prompt.foil)
        assert told == (question.text, question.answer, question.foil)
        assert prompt.image.tobytes() == picture.image.tobytes()
        assert ("object" in prompt.regions) == (prompt.answer == "yes")
        pairs = [found.get("object", ()) for found in (prompt.regions, question.regions)]
        for region, item in zip(*pairs, strict=True):
            assert np.array_equal(region.mask, item.mask)


def test_fewer_prompts_are_the_first_of_more():
    assert [p.answer for p in prompts("train", 2)] == [p.answer for p in prompts("train", 4)[:2]]


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
