"""Bars of pairs: largest first, in two colours, with their intervals."""

import numpy as np

from mmlens.plots import interaction_bars
from mmlens.plots.theme import LINES
from tests.result.examples import interactions


def test_bars_are_the_largest_interactions_with_their_intervals() -> None:
    result = interactions()
    figure, table = interaction_bars(result), result.top()
    (bar,) = figure.data
    assert list(figure.layout.xaxis.ticktext) == ["L2H1, L3H4", "L3H4, L4H6", "L2H1, L4H6"]
    np.testing.assert_allclose(bar.y, table["interaction"], rtol=1e-3)
    np.testing.assert_allclose(bar.error_y.array, table["upper"] - table["interaction"], rtol=1e-2)
    assert [LINES.index(colour) for colour in bar.marker.color] == [0, 1, 1]


def test_one_sample_and_few_pairs() -> None:
    figure = interaction_bars(interactions(), sample=0, k=1)
    assert len(figure.data[0].y) == 1 and abs(figure.data[0].y[0] + 2.1) < 1e-3
    assert "sample 0" in figure.layout.meta["subtitle"]
    assert "over masks" in figure.layout.meta["subtitle"]
