"""How alike head maps are within and between groups of samples, such as question families."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, final

import numpy as np
import pandas as pd
import xarray as xr

from mmlens.errors import ResultError
from mmlens.result.base import Result
from mmlens.result.schema import Variable

_SQUARE = ("group", "group_other")
_PAIR = ("pair",)
_COSINE = "1 = the same map up to its scale, 0 = nothing in common, −1 = opposite"
_GAP = "positive = maps are more alike within the groups than between them"
_ALL = "(the whole range where a group has only two samples)"


@final
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class MapSimilarityResult(Result):
    """Cosines of head maps within and between groups of samples, and what sets each pair of groups apart.

    What compares two *different* groups stands on the axis ``pair``, where no group meets itself: nothing is
    undefined, and means over pairs mean what they say. With one group there is no pair. Dataset attribute:
    ``score`` (whose maps these are).
    """

    kind: ClassVar[str] = "map_similarity"
    main: ClassVar[str] = "cosine"
    variables: ClassVar[Mapping[str, Variable]] = {
        "cosine": Variable(
            dims=_SQUARE,
            description="mean cosine between the maps of two samples, one of each group; of two different "
            "samples where the group is the same",
            unit="1",
            sign=_COSINE,
        ),
        "cosine_interval": Variable(
            dims=(*_SQUARE, "bound"),
            description=f"95 % bootstrap interval over samples of cosine {_ALL}",
            unit="1",
            sign=_COSINE,
        ),
        "n": Variable(dims=("group",), description="samples of each group", unit="samples", dtype="int"),
        "first": Variable(dims=_PAIR, description="one group of each pair", unit="", dtype="text"),
        "second": Variable(dims=_PAIR, description="the other group of each pair", unit="", dtype="text"),
        "gap": Variable(
            dims=_PAIR,
            description="mean of the two cosines within the groups, minus the cosine between them",
            unit="1",
            sign=_GAP,
        ),
        "gap_interval": Variable(
            dims=(*_PAIR, "bound"),
            description=f"95 % bootstrap interval over samples of gap {_ALL}",
            unit="1",
            sign=_GAP,
        ),
        "p_value": Variable(
            dims=_PAIR,
            description="how often the samples of both groups, assigned to them anew at random, have a gap at "
            "least as large; one-sided, not corrected for the number of pairs",
            unit="1",
        ),
    }
    required_attrs: ClassVar[tuple[str, ...]] = ("score",)
    plotter: ClassVar[str] = "mmlens.plots:similarity_map"

    def check(self) -> None:
        """Both axes of the cosines name the same groups, and pairs, gaps and p-values agree with them.

        Raises:
            ResultError: one of these is not so.
        """
        cosine, others = self.data["cosine"].values, self.data["group_other"].values.tolist()
        if others != self.groups:
            raise ResultError(
                f"axes group and group_other must have the same labels; got {others} beside {self.groups}."
            )
        if not np.array_equal(cosine, cosine.T) or np.abs(cosine).max(initial=0) > 1:
            raise ResultError("cosines must be symmetric and lie in [-1, 1]; these are not.")
        if (self.data["n"].values < 2).any():
            raise ResultError("each group needs two samples or more, or it has no cosine within.")
        pairs = list(zip(*(self.data[name].values.tolist() for name in ("first", "second")), strict=True))
        if pairs != list(combinations(self.groups, 2)):
            raise ResultError(
                f"pairs must name every two groups once, in the order of the groups; got {pairs}."
            )
        table = self.summary()
        expected = (table["within_first"] + table["within_second"]) / 2 - table["between"]
        if not np.allclose(table["gap"], expected, atol=1e-6):
            raise ResultError("a gap is not the mean cosine within its groups minus the one between them.")
        if not table["p_value"].between(0, 1, inclusive="right").all():
            raise ResultError("p-values must lie above 0 and not above 1: the order observed counts as one.")

    @property
    def groups(self) -> list[str]:
        """Names of the groups, in order."""
        return [str(name) for name in self.data["group"].values.tolist()]

    @property
    def within(self) -> xr.DataArray:
        """Mean cosine between two different samples of each group [group]."""
        labels = {"group": self.data["group"].values}
        diagonal = np.diagonal(self.data["cosine"].values).copy()
        return xr.DataArray(diagonal, dims="group", coords=labels, attrs=self.data["cosine"].attrs)

    def summary(self) -> pd.DataFrame:
        """One row per pair of groups.

        Returns:
            Columns first, second, within_first, within_second, between (cosines), gap with its interval as
            lower and upper, p_value; empty with one group.
        """
        at = {name: i for i, name in enumerate(self.groups)}
        first = [at.get(str(name), 0) for name in self.data["first"].values.tolist()]
        second = [at.get(str(name), 0) for name in self.data["second"].values.tolist()]
        cosine = self.data["cosine"].values
        return pd.DataFrame(
            {
                "first": self.data["first"].values,
                "second": self.data["second"].values,
                "within_first": cosine[first, first],
                "within_second": cosine[second, second],
                "between": cosine[first, second],
                "gap": self.data["gap"].values,
                "lower": self.data["gap_interval"].values[:, 0],
                "upper": self.data["gap_interval"].values[:, 1],
                "p_value": self.data["p_value"].values,
            }
        )

    def headline(self) -> str:
        """Mean cosine within groups and between them, and the pair that is least apart."""
        within = f"cosine of maps {float(self.within.mean()):.2f} within {len(self.groups)} group(s)"
        if not self.data.sizes["pair"]:
            return within
        table = self.summary()
        least = table.loc[table["gap"].idxmin()]
        return (
            f"{within}, {table['between'].mean():.2f} between; smallest gap {least['first']} and "
            f"{least['second']}: {least['gap']:+.2f} (p = {least['p_value']:.2g})"
        )
