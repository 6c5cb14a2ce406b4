"""Tables show the numbers of the results."""

import numpy as np
import pytest

from mmlens.report import tables
from mmlens.result import AttributionResult
from tests.result.examples import accuracy, attribution, faithfulness, run_info


def test_sample_cards_show_question_answers_and_tokens() -> None:
    card = tables.sample_cards(attribution(), 2)[1]
    assert (card.label, card.answer, card.foil, card.model_answer) == (
        "scene-1",
        "square",
        "triangle",
        "square",
    )
    assert card.right is True and card.image.startswith("data:image/png")
    assert [row.role for row in card.tokens] == ["system", "image", "question", "role", "final"]
    assert len(tables.sample_cards(attribution(), 2)) == 2


@pytest.mark.parametrize(
    ("answer", "said", "right"),
    [("cat", " Cat", True), ("cat", "dog", False), ("", "dog", None), ("cat", "", None)],
)
def test_answers_are_compared_as_words(answer: str, said: str, right: bool | None) -> None:
    result = attribution()
    data = result.data.assign_coords(answer=("sample", [answer] * 3), model_answer=("sample", [said] * 3))
    assert tables.sample_cards(AttributionResult(data=data, info=result.info), 1)[0].right is right


def test_samples_without_drawings_have_empty_cards() -> None:
    card = tables.sample_cards(attribution(drawings=False), 1)[0]
    assert (card.image, card.question, card.tokens, card.right) == ("", "", (), None)


def test_the_head_table_is_the_ranking() -> None:
    table = tables.top_heads(attribution(), k=3)
    best = attribution().top(1).iloc[0]
    assert [row[0] for row in table.rows] == ["L3H1", "L2H2", "L4H0"]
    assert table.rows[0][1:] == tuple(f"{best[name]:+.3f}" for name in ("theta", "lower", "upper"))


def test_the_control_table_has_one_row_per_model() -> None:
    table = tables.control_table([(attribution(), faithfulness()), (attribution(random=True), None)])
    assert [row[0] for row in table.rows] == ["scenes", "random weights"]
    assert table.rows[1][-1] == "not measured"
    assert table.rows[0][2] == f"{attribution().r2.values.mean():.2f}"


def test_the_curve_table_ends_with_random_heads() -> None:
    table = tables.curve_table(faithfulness())
    assert [row[0] for row in table.rows][-1] == "random heads (median)"
    assert table.rows[0][3] == "12" and table.rows[-1][2:] == ("not measured", "20", "not measured")


def test_draws_that_never_reach_the_threshold_count_as_infinitely_many() -> None:
    assert tables._heads(np.array([3.0, np.nan, np.nan])) == "never"
    assert tables._heads(np.array([3.0, 5.0, np.nan])) == "5"


def test_the_accuracy_table_has_every_family_of_every_model() -> None:
    table = tables.accuracy_table([accuracy(), accuracy(random=True)])
    assert len(table.rows) == 6
    assert table.rows[0] == (
        "scenes",
        "object",
        "0.960 [0.920, 1.000]",
        "0.140 [0.100, 0.180]",
        "0.140",
        "400",
    )


def test_provenance_stands_side_by_side() -> None:
    table = tables.provenance_table([("this model", run_info()), ("control", run_info("random"))])
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["model"] == ("scenes", "random") and rows["setting: keep"] == ("0.5", "0.5")
