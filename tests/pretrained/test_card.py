from dataclasses import asdict

import pytest

from mmlens.pretrained.card import write_card
from mmlens.pretrained.evaluate import Score
from mmlens.pretrained.objective import ALIGN_WEIGHT, DENSE_WEIGHT
from mmlens.pretrained.train import Settings, _arguments

SETTINGS = Settings(seed=7, tower_steps=500, steps=1500, batch=10)
SCORE = Score(family="side", n=200, right=190, blocked_right=99, majority=0.51)


@pytest.fixture
def card(tmp_path):
    losses = {"answer": 0.5, "dense": 0.25, "align": 0.125}
    curve = [{"step": 50 * (i + 1), **losses, "accuracy": {"side": i / 40}} for i in range(40)]
    write_card(tmp_path, settings=asdict(SETTINGS), parameters=1234567, curve=curve, scores=[SCORE])
    return (tmp_path / "README.md").read_text()


def curve_rows(card):
    rows = [line for line in card.splitlines() if line.startswith("| ") and line.endswith(" |")]
    return [line for line in rows if line.split("|")[1].strip().isdigit()]


def test_the_card_tells_what_was_measured(card):
    low, high = SCORE.interval
    assert f"| side | Which side is the circle on? | 0.950 | {low:.3f}–{high:.3f} | 0.495 | 0.510 |" in card
    assert "200 fresh held-out scenes" in card and "1,234,567 parameters" in card
    assert "{" not in card.replace("{question}", ""), "every blank is filled"


def test_the_card_tells_how_it_was_trained(card):
    words = " ".join(card.split())
    assert "seed 7, split `train`, 20,000 scenes, each seen once, up to 8 questions" in words
    assert "500 steps of the tower alone" in words and "1,500 steps of the whole model" in words
    assert f"{DENSE_WEIGHT} × dense + {ALIGN_WEIGHT} × alignment" in words
    assert "9 classes" in words and "8 question families" in words


def test_the_card_owns_up_to_what_is_there_by_construction(card):
    words = " ".join(card.split())
    assert "by construction" in words and "(row and column)" in words and "marks an object" in words
    assert (
        "may read 7 from layer 0 on, 2 from layer 1 on, 2 from layer 2 on, 2 from layer 3 on and 1 never"
        in words
    )
    assert "images that the text can never read (1 in 14)" in words


def test_the_curve_has_twelve_rows_and_no_accuracy_where_nothing_was_asked(card):
    rows = curve_rows(card)
    assert len(rows) == 12 and rows[-1] == "| 2000 | 0.500 | 0.250 | 0.125 | 0.97 |"
    assert rows[2] == "| 500 | – | 0.250 | – | – |"
    assert ["–" in row for row in rows] == [True] * 3 + [False] * 9


def test_the_command_on_the_card_has_flags_that_there_are(card):
    (line,) = (line for line in card.splitlines() if "mmlens.pretrained.train" in line)
    given = _arguments(line.split()[3:])
    assert (given.tower_steps, given.steps, given.seed) == (500, 1500, 7)


def test_a_run_without_a_curve_or_barred_scores_has_a_card_too(tmp_path):
    bare = Score(family="main", n=10, right=9, blocked_right=None, majority=0.2)
    write_card(tmp_path, settings=asdict(Settings()), parameters=1, curve=[], scores=[bare])
    card = (tmp_path / "README.md").read_text()
    assert "| main | What is the main object? | 0.900 |" in card and " | – | 0.200 |" in card
    assert not curve_rows(card)
