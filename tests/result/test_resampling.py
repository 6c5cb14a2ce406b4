"""The bootstrap: repeatable, right in expectation, and blind to the order of equal columns."""

import numpy as np
import pytest

from mmlens.errors import ConfigError
from mmlens.result.resampling import percentile_interval, resampled_means


def test_means_spread_like_the_standard_error() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, (50, 4))
    draws = resampled_means(values, 2000, seed=1)
    assert draws.shape == (2000, 4)
    np.testing.assert_allclose(draws.mean(axis=0), values.mean(axis=0), atol=0.03)
    np.testing.assert_allclose(draws.std(axis=0), values.std(axis=0) / np.sqrt(50), rtol=0.1)
    assert np.array_equal(draws, resampled_means(values, 2000, seed=1))
    assert not np.array_equal(draws, resampled_means(values, 2000, seed=2))


def test_equal_columns_stay_equal_to_the_last_digit() -> None:
    column = np.random.default_rng(0).normal(size=(37, 1))
    draws = resampled_means(np.repeat(column, 23, axis=1), 200, seed=0)
    assert (np.ptp(draws, axis=1) == 0).all()


def test_intervals_are_the_middle_of_the_draws() -> None:
    draws = np.stack([np.arange(101.0), np.full(101, 7.0)], axis=1)
    np.testing.assert_allclose(percentile_interval(draws), [[2.5, 97.5], [7.0, 7.0]])
    np.testing.assert_allclose(percentile_interval(draws, 0.5)[0], [25.0, 75.0])
    draws[3, 0] = np.nan
    assert np.isnan(percentile_interval(draws)[0]).all()


def test_no_draw_is_an_error() -> None:
    with pytest.raises(ConfigError, match="n_boot=0"):
        resampled_means(np.zeros((3, 2)), 0, seed=0)
