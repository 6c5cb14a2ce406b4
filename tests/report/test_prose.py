"""Headline numbers, against numbers worked out by hand; weak evidence is called weak."""

import numpy as np
import pytest

from mmlens.report.prose import effect, headline_cards, mean_text, sure_heads
from mmlens.result import AttributionResult, FaithfulnessResult
from tests.result.examples import accuracy, attribution, faithfulness


def changed(**values: float) -> AttributionResult:
    result = attribution()
    data = {name: result.data[name].copy(data=np.full(3, value)) for name, value in values.items()}
    return AttributionResult(data=result.data.assign(data), info=result.info)


def test_cards_of_a_full_report() -> None:
    cards = headline_cards(attribution(), faithfulness(), attribution(random=True), accuracy())
    assert [card.label for card in cards] == [
        "held-out R²",
        "heads that matter",
        "heads that suffice",
        "effect of the image",
        "effect with random weights",
        "accuracy, blocked",
    ]
    assert cards[2].value == "12 of 24" and "Random heads need 20" in cards[2].text
    assert cards[5].value == "0.24" and not any(card.weak for card in cards)


def test_the_fit_card_gives_mean_and_range() -> None:
    result = attribution()
    card = headline_cards(result, None, None, None)[0]
    r2 = result.r2.values
    assert card.value == f"{r2.mean():.2f}" and f"range {r2.min():.2f} to {r2.max():.2f}" in card.text
    assert "512" in card.text


@pytest.mark.parametrize(("r2", "weak"), [(0.49, True), (-3.0, True), (0.51, False), (np.nan, True)])
def test_a_weak_fit_is_called_weak(r2: float, weak: bool) -> None:
    card = headline_cards(changed(r2=r2), None, None, None)[0]
    assert card.weak is weak
    assert ("weak" in card.text or "never changed" in card.text) is weak


def test_effects_are_clean_minus_ablated() -> None:
    result = changed(clean=1.5, ablated=-2.0)
    assert effect(result) == pytest.approx(3.5)
    assert headline_cards(result, None, None, None)[2].value == "+3.50 logit"


def test_heads_that_matter_are_those_whose_interval_excludes_zero() -> None:
    view = attribution().summary()
    assert sure_heads(attribution()) == int(((view["lower"] > 0) | (view["upper"] < 0)).sum()) >= 4


def test_a_threshold_that_is_never_reached_is_said() -> None:
    result = faithfulness()
    data = result.data.assign(k80=result.data["k80"].copy(data=[np.nan] * 3))
    card = headline_cards(attribution(), FaithfulnessResult(data=data, info=result.info), None, None)[2]
    assert card.value == "never" and card.weak


def test_means_of_nothing_are_undefined() -> None:
    assert mean_text(np.array([np.nan, np.nan])) == "undefined"
    assert mean_text(np.array([np.nan, -1.0])) == "−1.00"


def test_the_fit_card_gives_agreement_and_cost_where_they_are_known() -> None:
    result = attribution()
    info = result.info.model_copy(update={"seconds": 4.0, "settings": {"n_runs": 1000}})
    text = headline_cards(AttributionResult(data=result.data, info=info), None, None, None)[0].text
    for part in ("512 random sets", "Pearson 0.9", "halves of the masks correlate with r = 0.9"):
        assert part in text
    assert "It took 4" in text and "250 masks per second" in text
    untimed = info.model_copy(update={"seconds": 0.0})
    data = result.data.drop_vars("split_half")
    text = headline_cards(AttributionResult(data=data, info=untimed), None, None, None)[0].text
    assert "halves" not in text and "took" not in text
