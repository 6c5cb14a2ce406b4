"""Exact values against all orders of joining, the axioms that define them, and games solved by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmlens.errors import NonFiniteError, ShapeError
from mmlens.result.games import (
    addition_effects,
    banzhaf,
    banzhaf_interactions,
    removal_effects,
    shapley,
    shapley_interactions,
)

VALUES = [shapley, banzhaf, removal_effects, addition_effects]
PAIRS = [shapley_interactions, banzhaf_interactions]


@st.composite
def games(draw: st.DrawFn, min_players: int = 1) -> np.ndarray:
    """The worth of every subset of 1 to 5 players."""
    players = draw(st.integers(min_players, 5))
    return draw(arrays(np.float64, 2**players, elements=st.floats(-100, 100)))


def table(players: int, worth) -> np.ndarray:
    """The table of a game given as a function of the set of players."""
    sets = [{i for i in range(players) if s >> i & 1} for s in range(2**players)]
    return np.array([float(worth(one)) for one in sets])


def by_orders(values: np.ndarray) -> np.ndarray:
    """Shapley values by their definition: the gain from joining, averaged over all orders."""
    players = len(values).bit_length() - 1
    total = np.zeros(players)
    for order in itertools.permutations(range(players)):
        present = 0
        for player in order:
            total[player] += values[present | 1 << player] - values[present]
            present |= 1 << player
    return total / math.factorial(players)


def without(values: np.ndarray, player: int) -> list[int]:
    return [s for s in range(len(values)) if not s >> player & 1]


@given(games())
def test_shapley_is_the_mean_over_all_orders(values: np.ndarray) -> None:
    np.testing.assert_allclose(shapley(values), by_orders(values), atol=1e-9)


@given(games())
def test_shapley_values_share_out_the_whole_effect(values: np.ndarray) -> None:
    assert shapley(values).sum() == pytest.approx(values[-1] - values[0], abs=1e-9)


@given(games())
def test_banzhaf_is_the_mean_over_all_subsets_of_the_others(values: np.ndarray) -> None:
    expected = [
        np.mean([values[s | 1 << i] - values[s] for s in without(values, i)])
        for i in range(len(banzhaf(values)))
    ]
    np.testing.assert_allclose(banzhaf(values), expected, atol=1e-9)


@given(games())
def test_banzhaf_is_the_slope_of_a_regression_on_all_masks(values: np.ndarray) -> None:
    """What head attribution with keep 0.5 converges to."""
    players = len(values).bit_length() - 1
    masks = np.array([[s >> i & 1 for i in range(players)] for s in range(len(values))], float)
    slopes = np.linalg.lstsq(np.column_stack([masks, np.ones(len(values))]), values, rcond=None)[0]
    np.testing.assert_allclose(banzhaf(values), slopes[:-1], atol=1e-8)


@pytest.mark.parametrize("value", VALUES)
@given(games(min_players=2), st.data())
def test_a_player_that_adds_nothing_is_worth_exactly_nothing(
    value, values: np.ndarray, data: st.DataObject
) -> None:
    player = data.draw(st.integers(0, len(values).bit_length() - 2))
    values = values[np.arange(len(values)) & ~(1 << player)]
    assert value(values)[player] == 0.0
    for pairs in PAIRS:
        assert not pairs(values)[player].any()


@pytest.mark.parametrize("value", VALUES)
@given(games(min_players=2))
def test_players_that_can_be_exchanged_are_worth_the_same(value, values: np.ndarray) -> None:
    s = np.arange(len(values))
    swapped = s & ~3 | (s & 1) << 1 | s >> 1 & 1  # players 0 and 1 exchanged
    fair = (values + values[swapped]) / 2
    assert value(fair)[0] == pytest.approx(value(fair)[1], abs=1e-9)
    np.testing.assert_allclose(value(values[swapped])[:2], value(values)[[1, 0]], atol=1e-9)


@pytest.mark.parametrize("value", [*VALUES, *PAIRS])
@given(games(), st.floats(-3, 3))
def test_values_of_a_sum_are_sums_of_values(value, values: np.ndarray, factor: float) -> None:
    other = values[::-1].copy()
    np.testing.assert_allclose(
        value(values + factor * other), value(values) + factor * value(other), atol=1e-8
    )


@pytest.mark.parametrize("players", [1, 2, 3, 6])
def test_an_additive_game_has_no_interaction(players: int) -> None:
    worth = np.arange(1.0, players + 1)
    game = table(players, lambda present: 5 + sum(worth[i] for i in present))
    for value in VALUES:
        np.testing.assert_allclose(value(game), worth, atol=1e-12)
    for pairs in PAIRS:
        np.testing.assert_allclose(pairs(game), 0, atol=1e-12)


@pytest.mark.parametrize("players", [2, 3, 6])
def test_and_games_by_hand(players: int) -> None:
    game = table(players, lambda present: len(present) == players)
    np.testing.assert_allclose(shapley(game), 1 / players)
    np.testing.assert_allclose(banzhaf(game), 0.5 ** (players - 1))
    assert (removal_effects(game) == 1).all() and (addition_effects(game) == 0).all()
    off = 1 - np.eye(players)
    np.testing.assert_allclose(shapley_interactions(game), off / (players - 1))
    np.testing.assert_allclose(banzhaf_interactions(game), off * 0.5 ** (players - 2))


@pytest.mark.parametrize("players", [2, 3, 6])
def test_or_games_by_hand(players: int) -> None:
    """Each head can stand in for the others: removing one alone shows nothing."""
    game = table(players, bool)
    np.testing.assert_allclose(shapley(game), 1 / players)
    np.testing.assert_allclose(banzhaf(game), 0.5 ** (players - 1))
    assert (removal_effects(game) == 0).all() and (addition_effects(game) == 1).all()
    off = 1 - np.eye(players)
    np.testing.assert_allclose(shapley_interactions(game), -off / (players - 1))
    np.testing.assert_allclose(banzhaf_interactions(game), -off * 0.5 ** (players - 2))


def test_the_lowest_bit_is_the_first_player() -> None:
    game = np.array([0.0, 1.0, 10.0, 11.0])  # none, player 0, player 1, both
    assert shapley(game).tolist() == [1.0, 10.0]


@given(games(min_players=2))
def test_interactions_are_those_of_grabisch_and_roubens(values: np.ndarray) -> None:
    players = len(values).bit_length() - 1
    expected = np.zeros((2, players, players))
    for i, j in itertools.permutations(range(players), 2):
        for s in without(values, i):
            if s >> j & 1:
                continue
            both = values[s | 1 << i | 1 << j] - values[s | 1 << i] - values[s | 1 << j] + values[s]
            size = s.bit_count()
            weight = math.factorial(size) * math.factorial(players - size - 2) / math.factorial(players - 1)
            expected[:, i, j] += weight * both, both / 2 ** (players - 2)
    np.testing.assert_allclose(shapley_interactions(values), expected[0], atol=1e-9)
    np.testing.assert_allclose(banzhaf_interactions(values), expected[1], atol=1e-9)
    for pairs in PAIRS:
        found = pairs(values)
        assert np.array_equal(found, found.T) and not found.diagonal().any()


@pytest.mark.parametrize("value", [*VALUES, *PAIRS])
def test_leading_axes_are_kept_and_single_precision_is_widened(value) -> None:
    batch = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    found = value(batch)
    assert found.shape[:3] == (2, 3, 3) and found.dtype == np.float64
    np.testing.assert_allclose(found[1, 2], value(batch[1, 2].astype(np.float64)))


@pytest.mark.parametrize("value", [*VALUES, *PAIRS])
@pytest.mark.parametrize("length", [0, 1, 3, 12])
def test_tables_of_no_whole_game_are_refused(value, length: int) -> None:
    with pytest.raises(ShapeError, match="2, 4, 8"):
        value(np.zeros((5, length)))


@pytest.mark.parametrize("value", [*VALUES, *PAIRS])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_unmeasured_subsets_are_refused(value, bad: float) -> None:
    with pytest.raises(NonFiniteError, match="1 worths"):
        value(np.array([0.0, 1.0, bad, 2.0]))
