"""Interactions of pairs of heads: do they stand in for each other, or need each other?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import pandas as pd
import xarray as xr

from mmlens.errors import ResultError
from mmlens.result.base import Result
from mmlens.result.schema import Variable
from mmlens.result.summary import head_summary

PAIR_COORDS = ("first_layer", "first_head", "second_layer", "second_head")
"""Coordinates of the pair axis: places of a pair's two heads."""

_SIGN = "negative = either head can stand in for the other, positive = they need each other"


@final
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class InteractionResult(Result):
    """What the second head of a pair adds when the first reads the image, minus what it adds when the first does not.

    Dataset attributes: ``metric`` and ``unit`` of it, ``baseline`` (what an ablated head reads), ``design`` (how masks
    were drawn). The pair axis has the coordinates ``first_layer, first_head, second_layer, second_head``.
    """

    kind: ClassVar[str] = "interactions"
    main: ClassVar[str] = "interaction"
    variables: ClassVar[Mapping[str, Variable]] = {
        "interaction": Variable(
            dims=("sample", "pair"),
            description="Banzhaf interaction of two heads: second difference of the metric, mean over all other heads' "
            "states",
            sign=_SIGN,
        ),
        "interval": Variable(
            dims=("sample", "pair", "bound"),
            description="95 % bootstrap interval of the interaction over masks",
            sign=_SIGN,
        ),
        "n_masks": Variable(
            dims=("sample",), description="random head masks used to fit", unit="masks", dtype="int"
        ),
    }
    required_attrs: ClassVar[tuple[str, ...]] = ("metric", "unit", "baseline", "design")
    plotter: ClassVar[str] = "mmlens.plots:interaction_bars"

    def check(self) -> None:
        """The pairs say which heads they are, and intervals are ordered.

        Raises:
            ResultError: a place is missing or negative, a head is paired with itself, or a lower end lies above its
                upper end.
        """
        for name in PAIR_COORDS:
            place = self.data.coords.get(name)
            if place is None or place.dims != ("pair",) or place.dtype.kind not in "iu" or (place < 0).any():
                raise ResultError(
                    f"an interactions result needs the coordinate {name} [pair] of whole numbers from 0 up."
                )
        if any(one == other for one, other in self.pairs):
            raise ResultError("a head is paired with itself; interactions are between different heads.")
        if (self.interval.sel(bound="lower") > self.interval.sel(bound="upper")).any():
            raise ResultError(
                "an interval of these interactions has its lower end above its upper end; swap them."
            )

    @property
    def pairs(self) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
        """The two heads of each pair, as (layer, head)."""
        places = zip(*(self.data[name].values.tolist() for name in PAIR_COORDS), strict=True)
        return tuple(((a, b), (c, d)) for a, b, c, d in places)

    @property
    def labels(self) -> list[str]:
        """The pairs in words, such as ``L2H1, L3H4``."""
        return [f"L{a}H{b}, L{c}H{d}" for (a, b), (c, d) in self.pairs]

    @property
    def interaction(self) -> xr.DataArray:
        """Interaction [sample, pair], metric's unit; negative = either head can stand in for the other."""
        return self.data["interaction"]

    @property
    def interval(self) -> xr.DataArray:
        """95 % bootstrap interval [sample, pair, bound], in the metric's unit."""
        return self.data["interval"]

    def summary(self, sample: int | str | None = None) -> xr.Dataset:
        """One value and one interval per pair, of one sample or of the mean over all.

        Args:
            sample: position or label; None for all samples.

        Returns:
            Dataset ``interaction, lower, upper`` [pair] in the metric's unit. The interval is the bootstrap interval of
            a single sample, or the t interval of the mean over several.
        """
        chosen = self if sample is None else self.select(sample)
        view = head_summary(chosen.interaction, chosen.interval).rename(theta="interaction")
        return view.assign_coords({name: self.data[name] for name in PAIR_COORDS})

    def top(self, k: int = 10, sample: int | str | None = None) -> pd.DataFrame:
        """The ``k`` pairs with the largest interaction, whatever its sign.

        Args:
            k: how many pairs.
            sample: position or label; None for the mean over all samples.

        Returns:
            Columns first_layer, first_head, second_layer, second_head, interaction, lower, upper (metric's unit).
        """
        table = self.summary(sample).to_dataframe().reset_index(drop=True)
        order = np.argsort(-np.abs(table["interaction"].to_numpy()), kind="stable")[:k]
        return table[[*PAIR_COORDS, "interaction", "lower", "upper"]].iloc[order].reset_index(drop=True)

    def to_pandas(self) -> pd.DataFrame:
        """A long table: one row per sample and pair, with the places of the two heads and the interval.

        Returns:
            Columns sample, pair, first_layer, first_head, second_layer, second_head, interaction, lower, upper.
        """
        table = Result.to_pandas(self)
        for i, name in enumerate(PAIR_COORDS):
            table.insert(2 + i, name, np.tile(self.data[name].values, self.n))
        return table

    def headline(self) -> str:
        """The pair that interacts most."""
        best = self.top(1).iloc[0]
        one, other = (f"L{int(best[f'{p}_layer'])}H{int(best[f'{p}_head'])}" for p in ("first", "second"))
        word = "stand in for each other" if best["interaction"] < 0 else "need each other"
        return (
            f"{len(self.pairs)} pairs, mean of {self.n}: {one} and {other} {word} most ({best['interaction']:+.3g} "
            f"{self.data.attrs['unit']}, [{best['lower']:+.3g}, {best['upper']:+.3g}])"
        )
