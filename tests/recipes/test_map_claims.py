"""Maps by class and by looks: gaps by hand and against loops, what the altered scenes keep, and both tables."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from mmlens.errors import DesignError
from mmlens.recipes import map_claims
from mmlens.recipes.map_claims import (
    AGAIN,
    CONTRASTS,
    OTHER_PICTURE,
    OTHER_SCENE,
    OTHER_WORD,
    VARIANTS,
    _means,
    alike,
    appearance_table,
    class_gap,
    class_table,
    other_words,
    prompts_by_class,
    styled_scenes,
)


def cells(table: str) -> list[list[str]]:
    """Rows of the first table in a text, without its head."""
    lines = [line for line in table.split("\n") if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


# --- classes


def test_classes_that_share_nothing_are_a_whole_cosine_apart() -> None:
    maps = np.repeat(np.eye(3), 4, axis=0) * np.arange(1.0, 13.0)[:, None]
    found = class_gap(maps, [name for name in "abc" for _ in range(4)], n_boot=200)
    assert (found.within, found.between, found.gap) == pytest.approx((1, 0, 1))
    assert found.interval == pytest.approx((1, 1)) and found.p_value == pytest.approx(1 / 201)


def test_gap_equals_plain_loops() -> None:
    rng = np.random.default_rng(0)
    maps, labels = rng.normal(size=(9, 5)), list("aaabbbbcc")
    cosines: dict[bool, list[float]] = {True: [], False: []}
    for i, j in combinations(range(9), 2):
        cosine = maps[i] @ maps[j] / np.linalg.norm(maps[i]) / np.linalg.norm(maps[j])
        cosines[labels[i] == labels[j]].append(float(cosine))
    found = class_gap(maps, labels, n_boot=50)
    assert (found.within, found.between) == pytest.approx((np.mean(cosines[True]), np.mean(cosines[False])))
    assert found.gap == pytest.approx(found.within - found.between)


def test_a_prompt_drawn_twice_is_no_pair_with_itself() -> None:
    rng = np.random.default_rng(1)
    maps = rng.normal(size=(4, 3))
    unit = maps / np.linalg.norm(maps, axis=1, keepdims=True)
    one_hot = np.eye(2)[[0, 0, 1, 1]]
    weights = np.array([2.0, 1.0, 0.0, 3.0])
    drawn = [i for i, n in enumerate(weights) for _ in range(int(n))]
    pairs = [(i, j) for i, j in combinations(drawn, 2) if i != j]
    within = [unit[i] @ unit[j] for i, j in pairs if one_hot[i] @ one_hot[j]]
    between = [unit[i] @ unit[j] for i, j in pairs if not one_hot[i] @ one_hot[j]]
    found = _means(unit @ unit.T, (weights[:, None] * one_hot)[None])
    assert [float(one[0]) for one in found] == pytest.approx([np.mean(within), np.mean(between)])


def test_labels_that_mean_nothing_have_no_gap() -> None:
    rng, p_values, hits = np.random.default_rng(2), [], 0
    for seed in range(40):
        found = class_gap(rng.normal(size=(12, 6)) + 1, list("aabbccaabbcc"), n_boot=99, seed=seed)
        p_values.append(found.p_value)
        hits += found.interval[0] <= 0 <= found.interval[1]
    assert 0.3 < np.mean(p_values) < 0.7 and min(p_values) >= 0.01 and hits >= 32


def test_classes_of_two_are_never_drawn_as_copies_of_one() -> None:
    maps = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, -1.0]])
    found = class_gap(maps, list("aabb"), n_boot=100)
    assert found.within == pytest.approx(0.0, abs=1e-12) and found.interval[0] == pytest.approx(found.gap)


@pytest.mark.parametrize("labels", ["aaaa", "aaab"])
def test_classes_too_few_or_too_small_are_refused(labels: str) -> None:
    with pytest.raises(DesignError, match="two classes or more"):
        class_gap(np.eye(4), list(labels))


def test_prompts_are_as_many_of_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_by_class("colour", 3)
    answers = [str(prompt.answer) for prompt in prompts]
    assert len(set(answers)) == 8 and all(answers.count(one) == 3 for one in answers)
    monkeypatch.setattr(map_claims, "MOST", 20)
    with pytest.raises(DesignError, match="too few 'main' prompts"):
        prompts_by_class("main", 5)


# --- looks


@pytest.fixture(scope="module")
def styled() -> Any:
    return styled_scenes(6)


def test_restyled_scenes_keep_question_and_answer(styled: Any) -> None:
    plain, altered = styled
    assert len(plain) == 6 and list(altered) == list(VARIANTS)
    for change, some in altered.items():
        for one, two in zip(plain, some, strict=True):
            assert one.question == two.question
            assert (one.answer == two.answer) == (change != "object")
            assert np.asarray(one.image).tobytes() != np.asarray(two.image).tobytes()


def test_words_are_exchanged_and_pictures_kept(styled: Any) -> None:
    plain, other = styled[0], styled[1]["object"]
    made = other_words(plain, other)
    for one, two, word, picture in zip(plain, other, made[OTHER_WORD], made[OTHER_PICTURE], strict=True):
        assert word.image is one.image and word.answer == two.answer
        assert picture.image is two.image and picture.answer == one.answer


def test_cosines_are_with_the_own_scene_and_with_another_class() -> None:
    maps = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 2.0]])
    found = alike(maps, {"same": 3 * maps, "opposite": -maps}, ["ring", "ring", "moon"])
    np.testing.assert_allclose(found["same"], 1)
    np.testing.assert_allclose(found["opposite"], -1)
    np.testing.assert_allclose(found[OTHER_SCENE], [0, 0.1 / 1.01**0.5, 0], atol=1e-12)
    with pytest.raises(DesignError, match="same class"):
        alike(maps, {}, ["ring"] * 3)


# --- tables


def test_the_table_of_classes_has_a_row_per_model_and_family() -> None:
    (row,) = cells(class_table(("scenes",), per_class=2, families=("existence",), n_boot=50))
    assert row[:3] == ["`scenes`", "existence", "2 × 2"]
    within, between, gap = (float(cell.replace("−", "-").split(" [")[0]) for cell in row[3:6])
    assert gap == pytest.approx(within - between, abs=2e-3) and row[6] != row[5]


def test_the_table_of_looks_tells_restyled_from_other_objects() -> None:
    rows = cells(appearance_table(("scenes",), n=2, n_boot=50))
    labels = [AGAIN, *VARIANTS.values(), OTHER_WORD, OTHER_PICTURE, OTHER_SCENE]
    assert [row[1] for row in rows] == [*labels, *(f"{one} − {other}" for one, other in CONTRASTS)]
    value = {row[1]: float(row[2].strip("*").split(" [")[0].replace("−", "-")) for row in rows}
    assert value[AGAIN] > 0.99 and value[VARIANTS["texture"]] > 0.95
    first = f"{VARIANTS['texture']} − {VARIANTS['object']}"
    assert value[first] == pytest.approx(value[VARIANTS["texture"]] - value[VARIANTS["object"]], abs=2e-3)
    assert value[first] > 0
