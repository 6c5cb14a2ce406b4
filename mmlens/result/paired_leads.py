"""Is one ranking of heads better than another on the same prompts? Paired bootstrap of curves over prompts.

1. Draw prompts with replacement; the same draw serves every method.
2. Curves of the draw: ratio of sums, as in ``faithfulness``. Of each method's curve, the area or the fewest heads that
   reach a threshold. Chance is the median over the random rankings, which are drawn with replacement, too.
3. Lead: how far the first method is ahead of another in each draw; the interval is the middle 95 % of the leads.

A prompt that is easy for every ranking is so on both sides and drops out of the lead; intervals of the methods one by
one may overlap where that of their lead excludes 0. It is about these rankings on other prompts: that the rankings
would come out otherwise from other prompts is not in it.

Source: paired bootstrap as usual (Efron & Tibshirani 1993); ratio of sums, and the median over random rankings, ours.
"""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from mmlens.errors import ConfigError, ResultError
from mmlens.result.faithfulness import FaithfulnessResult

Array = np.ndarray

RANDOM = "random (median)"
"""The row of the random rankings."""
CURVES = ("faithfulness", "completeness")
QUANTITIES = ("area", "k80", "k90")
COLUMNS = ["method", "value", "lead", "lower", "upper", "decided"]


def paired_leads(
    result: FaithfulnessResult,
    *,
    first: str | None = None,
    curve: str = "faithfulness",
    quantity: str = "area",
    n_boot: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """How far one method is ahead of each other method and of chance, with 95 % intervals paired by prompt.

    Args:
        result: curves of two prompts or more.
        first: the method that may lead; None is the first of the result.
        curve: ``faithfulness`` or ``completeness``.
        quantity: ``area`` under the curve (without unit), or ``k80`` or ``k90``, the fewest heads that reach 0.8 or 0.9
            (infinite where none does).
        n_boot: bootstrap draws over prompts.
        seed: of the draws.

    Returns:
        One row per other method, and one for the random rankings if there are any: ``method``; its ``value``; ``lead``
        with ``lower`` and ``upper``, positive = the first method is better (a larger area, or fewer heads);
        ``decided``, whether the interval excludes 0. The first method itself is the first row, with a lead of 0.

    Raises:
        ConfigError: a curve or quantity that there is not, or no bootstrap draw.
        ResultError: no such method, one prompt only, no effects of single prompts, or effects that do not stay
            positive under resampling, so that shares of them mean nothing.
    """
    _check(curve, quantity, n_boot)
    names = result.methods
    lead = names[0] if first is None else first
    if lead not in names:
        raise ResultError(f"no method is called {lead!r}; there are {', '.join(names)}.")
    rng = np.random.default_rng(seed)
    data, n = result.data, result.n
    sizes, shares = data["size"].values, data[curve].values
    index = np.stack([np.arange(n), *rng.integers(n, size=(n_boot, n))])  # the first row: as observed
    weights = _weights(result, index)
    found = dict(zip(names, _quantity(quantity, _curves(shares, weights), sizes), strict=True))  # 2
    if f"random_{curve}" in data:
        draws = _quantity(quantity, _curves(data[f"random_{curve}"].values, weights), sizes)
        found[RANDOM] = _chance(draws, rng)
    sign = 1 if quantity == "area" else -1
    rows = []
    for name in [lead, *(other for other in found if other != lead)]:
        leads = np.zeros(n_boot + 1) if name == lead else sign * _difference(found[lead], found[name])  # 3
        lower, upper = _ends(leads[1:])
        decided = lower > 0 or upper < 0
        rows.append([name, float(found[name][0]), float(leads[0]), lower, upper, decided])
    return pd.DataFrame(rows, columns=COLUMNS)


def _check(curve: str, quantity: str, n_boot: int) -> None:
    for what, value, known in (("curve", curve, CURVES), ("quantity", quantity, QUANTITIES)):
        if value not in known:
            raise ConfigError(f"{what}={value!r} is unknown; choose {', '.join(known)}.")
    if n_boot < 1:
        raise ConfigError(f"n_boot={n_boot}: at least one bootstrap draw is needed, better 1000.")


def _weights(result: FaithfulnessResult, index: Int[Array, "draw sample"]) -> Float[Array, "draw sample"]:
    """Weight of each prompt's share in each draw, such that the weighted sum is the draw's ratio of sums."""
    data: Any = result.data
    if result.n < 2 or "effect" not in data:
        raise ResultError(
            f"leads need two prompts or more and the effect of each; this result has {result.n} prompt(s)"
            f"{'' if 'effect' in data else ' and no variable effect'}. Run faithfulness again on more prompts."
        )
    effect = data["effect"].values
    counts = np.stack([np.bincount(row, minlength=result.n) for row in index]).astype(float)
    totals = counts @ effect
    if (low := int((totals <= 0).sum())) > 0:
        raise ResultError(
            f"the prompts' effects sum to 0 or less in {low} of {len(index)} draws: the image does not reliably help "
            "these answers, so no share of its effect has an interval. Choose prompts that the model answers from "
            "the image."
        )
    return counts * effect.mean() / totals[:, None]


def _curves(
    shares: Float[Array, "ranking sample size"], weights: Float[Array, "draw sample"]
) -> Float[Array, "ranking draw size"]:
    return np.einsum("bs,rsk->rbk", weights, shares)


def _quantity(
    quantity: str, curves: Float[Array, "ranking draw size"], sizes: Int[Array, " size"]
) -> Float[Array, "ranking draw"]:
    if quantity == "area":
        return np.asarray(np.trapezoid(curves, sizes / sizes[-1], axis=-1))
    reached = curves >= {"k80": 0.8, "k90": 0.9}[quantity]
    return np.where(reached.any(axis=-1), sizes.astype(float)[reached.argmax(axis=-1)], np.inf)


def _chance(draws: Float[Array, "ranking draw"], rng: np.random.Generator) -> Float[Array, " draw"]:
    """Median over random rankings: over all of them as observed, over as many drawn anew in each bootstrap draw."""
    index = rng.integers(len(draws), size=draws.shape)
    index[:, 0] = np.arange(len(draws))
    return np.median(np.take_along_axis(draws, index, axis=0), axis=0)


def _difference(one: Float[Array, " draw"], other: Float[Array, " draw"]) -> Float[Array, " draw"]:
    """One minus the other; 0 where neither reaches the threshold."""
    both = np.isinf(one) & np.isinf(other)
    return np.where(both, 0.0, np.where(both, 0.0, one) - np.where(both, 0.0, other))


def _ends(draws: Float[Array, " draw"]) -> tuple[float, float]:
    """The middle 95 %, ends taken from the draws themselves: numbers of heads are whole, and may be infinite."""
    return float(np.quantile(draws, 0.025, method="lower")), float(np.quantile(draws, 0.975, method="higher"))
