from dataclasses import asdict

from mmlens.pretrained.card import write_card
from mmlens.pretrained.evaluate import Score
from mmlens.pretrained.train import Settings


def test_the_card_tells_what_was_measured(tmp_path):
    score = Score(family="side", n=200, right=190, blocked_right=99, majority=0.51)
    losses = {"answer": 0.5, "dense": 0.25, "align": 0.125}
    curve = [{"step": 50 * (i + 1), **losses, "accuracy": {"side": i / 40}} for i in range(40)]
    write_card(tmp_path, settings=asdict(Settings(seed=7)), parameters=1234567, curve=curve, scores=[score])
    card = (tmp_path / "README.md").read_text()
    low, high = score.interval
    assert "| side | Is the circle on the left or on the right? | 0.950 |" in card
    assert f" | {low:.3f}–{high:.3f} | 0.495 | 0.510 |" in card
    assert "1,234,567 parameters" in card and "seed 7" in card and "by construction" in card
    rows = [line for line in card.splitlines() if line.startswith("| ") and line.endswith(" |")]
    curve_rows = [line for line in rows if line.split("|")[1].strip().isdigit()]
    assert len(curve_rows) == 12 and curve_rows[-1].startswith("| 2000 | 0.500 | 0.250 | 0.125 | 0.97 |")
