"""Intervals of means, against scipy; scores without any interval."""

import numpy as np
import pytest
from scipy import stats

from mmlens.result.summary import head_summary, mean_interval
from tests.result.examples import head_score


def test_mean_interval_is_scipys() -> None:
    values = np.random.default_rng(0).normal(size=(7, 3))
    low, high = mean_interval(values, level=0.9)
    for i in range(3):
        column = values[:, i]
        expected = stats.t.interval(0.9, 6, loc=column.mean(), scale=stats.sem(column))
        assert (low[i], high[i]) == pytest.approx(expected)


def test_one_sample_without_interval_has_undefined_bounds() -> None:
    view = head_summary(head_score(n=1).score, None)
    assert np.isnan(view["lower"].values).all() and view.attrs["interval"] == "no interval"
    assert np.array_equal(view["theta"].values, head_score(n=1).score.values[0])
