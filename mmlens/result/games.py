"""Exact values of cooperative games from a full table: what each player adds, and what each pair adds together.

A table lists the worth of every set of k players: entry ``s`` of its last axis, of length 2^k, is the worth of
the set whose bit mask is ``s`` (bit i set = player i takes part). Nothing is sampled or estimated here.

Source: Shapley 1953; Banzhaf 1965; Grabisch and Roubens 1999 for the interaction indices.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from mmlens.errors import NonFiniteError, ShapeError

Table = Float[np.ndarray, "*batch subset"]
PerPlayer = Float[np.ndarray, "*batch player"]
PerPair = Float[np.ndarray, "*batch player other_player"]


def shapley(values: Table) -> PerPlayer:
    """Mean gain from a player's joining, over all orders in which the players can join.

    Args:
        values: worth of every subset, any unit.

    Returns:
        One value per player, same unit; they sum to the worth of all players minus that of none.

    Raises:
        ShapeError: the last axis is not 2, 4, 8, … long.
        NonFiniteError: a worth is NaN or infinite.
    """
    return _weighted_gains(values, lambda players, size: 1 / (players * math.comb(players - 1, size)))


def banzhaf(values: Table) -> PerPlayer:
    """Mean gain from a player's joining, over all subsets of the others, each as likely as any.

    It is what least squares over head masks with keep 0.5 estimates.

    Args:
        values: worth of every subset, any unit.

    Returns:
        One value per player, same unit.

    Raises:
        ShapeError: the last axis is not 2, 4, 8, … long.
        NonFiniteError: a worth is NaN or infinite.
    """
    return _weighted_gains(values, lambda players, size: 0.5 ** (players - 1))


def removal_effects(values: Table) -> PerPlayer:
    """What the removal of a player from all others costs, ``v(N) - v(N without i)``: single-head ablation.

    Args:
        values: worth of every subset, any unit.

    Raises:
        ShapeError: the last axis is not 2, 4, 8, … long.
        NonFiniteError: a worth is NaN or infinite.
    """
    return _weighted_gains(values, lambda players, size: float(size == players - 1))


def addition_effects(values: Table) -> PerPlayer:
    """What a player is worth alone, ``v({i}) - v(∅)``.

    Args:
        values: worth of every subset, any unit.

    Raises:
        ShapeError: the last axis is not 2, 4, 8, … long.
        NonFiniteError: a worth is NaN or infinite.
    """
    return _weighted_gains(values, lambda players, size: float(size == 0))


def shapley_interactions(values: Table) -> PerPair:
    """How much more a pair adds together than apart, weighted over the other players as Shapley does.

    Args:
        values: worth of every subset, any unit.

    Returns:
        Symmetric, with a zero diagonal, same unit; positive = they need each other, negative = either can
        stand in for the other.

    Raises:
        ShapeError: the last axis is not 2, 4, 8, … long.
        NonFiniteError: a worth is NaN or infinite.
    """
    return _weighted_pairs(values, lambda players, size: 1 / ((players - 1) * math.comb(players - 2, size)))


def banzhaf_interactions(values: Table) -> PerPair:
    """How much more a pair adds together than apart, mean over all subsets of the other players.

    Args:
        values: worth of every subset, any unit.

    Returns:
        As ``shapley_interactions``.

    Raises:
        ShapeError: the last axis is not 2, 4, 8, … long.
        NonFiniteError: a worth is NaN or infinite.
    """
    return _weighted_pairs(values, lambda players, size: 0.5 ** (players - 2))


def _weighted_gains(values: Table, weight: Callable[[int, int], float]) -> PerPlayer:
    """Gains of each player, weighted by the size of the subset that it joins."""
    table, players = _checked(values)
    weights = np.array([weight(players, size) for size in range(players)])
    found = np.empty((*table.shape[:-1], players))
    for player in range(players):
        rest = _subsets_without(players, player)
        gains = table[..., rest | 1 << player] - table[..., rest]
        found[..., player] = gains @ weights[np.bitwise_count(rest)]
    return found


def _weighted_pairs(values: Table, weight: Callable[[int, int], float]) -> PerPair:
    """What each pair adds beyond its members, weighted by the size of the subset that it joins."""
    table, players = _checked(values)
    weights = np.array([weight(players, size) for size in range(players - 1)])
    found = np.zeros((*table.shape[:-1], players, players))
    for one in range(players):
        for other in range(one):
            rest = _subsets_without(players, one, other)
            first, second = 1 << one, 1 << other
            both = table[..., rest | first | second] - table[..., rest | second]
            alone = table[..., rest | first] - table[..., rest]
            found[..., one, other] = (both - alone) @ weights[np.bitwise_count(rest)]
            found[..., other, one] = found[..., one, other]
    return found


def _subsets_without(players: int, *absent: int) -> Int[np.ndarray, " subset"]:
    """Bit masks of all subsets in which none of ``absent`` takes part."""
    subsets = np.arange(2**players)
    return subsets[(subsets & sum(1 << player for player in absent)) == 0]


def _checked(values: Table) -> tuple[Float[np.ndarray, "*batch subset"], int]:
    """The table in float64, and its number of players."""
    length = values.shape[-1] if values.ndim else 0
    players = length.bit_length() - 1
    if length < 2 or length != 2**players:
        raise ShapeError(
            f"a game's table has shape {list(values.shape)}; its last axis must have one entry per subset of "
            "k players: 2, 4, 8, 16, …"
        )
    if not np.isfinite(values).all():
        raise NonFiniteError(
            f"{int((~np.isfinite(values)).sum())} worths of this game are NaN or infinite; every subset must "
            "have been measured."
        )
    return np.asarray(values, np.float64), players
