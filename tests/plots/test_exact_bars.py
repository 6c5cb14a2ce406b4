"""One bar per player and family; decoys are hatched, relays not drawn."""

import numpy as np
import pytest

from mmlens.plots import exact_bars
from mmlens.result.summary import mean_interval
from tests.result.examples import planted_truth


@pytest.mark.parametrize("index", ["shapley", "banzhaf", "removal", "addition"])
def test_bars_are_exact_values_with_their_intervals(index) -> None:
    result = planted_truth()
    figure = exact_bars(result, index=index)
    assert [trace.name for trace in figure.data] == ["L3H1 (carrier)", "L2H2 (carrier)", "L1H3 (decoy)"]
    for trace, (layer, head) in zip(figure.data, result.players, strict=True):
        expected = [float(result.exact(name, index=index)[layer, head]) for name in result.families]
        assert np.allclose(trace.y, expected, rtol=1e-3)
    low, high = mean_interval(result.player_values("colour", index=index).values)
    assert np.isclose(figure.data[0].error_y.array[1], (high - low)[0] / 2, rtol=1e-3)
    assert [trace.marker.pattern.shape for trace in figure.data] == ["", "", "/"]


def test_the_first_baseline_is_the_default() -> None:
    result = planted_truth()
    first, other = exact_bars(result), exact_bars(result, baseline="knockout")
    assert np.allclose(other.data[0].y, 0.9 * np.array(first.data[0].y), rtol=1e-3)
    assert "mean_image_tokens" in first.layout.meta["subtitle"]
    assert "knockout" in other.layout.meta["subtitle"]


def test_one_sample_has_no_error_bars() -> None:
    figure = exact_bars(planted_truth(n=1))
    assert figure.data[0].error_y.array is None and "Error bars" not in figure.layout.meta["subtitle"]


def test_unit_n_and_families_are_named() -> None:
    figure = exact_bars(planted_truth())
    assert list(figure.layout.xaxis.ticktext) == ["object", "colour", "count"]
    assert figure.layout.yaxis.title.text == "exact Shapley value (logit)"
    for part in ("8 subsets", "n = 5 samples"):
        assert part in figure.layout.meta["subtitle"]
