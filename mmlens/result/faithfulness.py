"""How few heads suffice (faithfulness), how many must go (completeness): per method, against chance."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from mmlens.errors import ResultError
from mmlens.result.base import Result
from mmlens.result.schema import Variable

_CURVE = ("method", "sample", "size")
_RANDOM = ("draw", "sample", "size")
_PER_SAMPLE = ("method", "sample")
_BAND = ("method", "size", "bound")
_FAITHFUL = "1 = the kept heads alone restore the clean metric, 0 = no better than none"
_COMPLETE = "1 = without these heads nothing of the effect is left, 0 = their removal changes nothing"


_MEAN_INTERVAL = "95 % bootstrap interval of the mean over samples"

_SHARES = (  # name, axes, description, sign, required
    ("faithfulness", _CURVE, "share of the effect that a method's top heads alone restore", _FAITHFUL, True),
    ("completeness", _CURVE, "share of the effect lost without a method's top heads", _COMPLETE, True),
    ("auc_faithfulness", _PER_SAMPLE, "normalised area under the faithfulness curve", _FAITHFUL, True),
    ("auc_completeness", _PER_SAMPLE, "normalised area under the completeness curve", _COMPLETE, True),
    ("faithfulness_interval", _BAND, _MEAN_INTERVAL, _FAITHFUL, False),
    ("completeness_interval", _BAND, _MEAN_INTERVAL, _COMPLETE, False),
    ("random_faithfulness", _RANDOM, "faithfulness of random head sets", _FAITHFUL, False),
    ("random_completeness", _RANDOM, "completeness of random head sets", _COMPLETE, False),
    ("random_auc_faithfulness", ("draw", "sample"), "area under random curves", _FAITHFUL, False),
    ("random_auc_completeness", ("draw", "sample"), "area under random curves", _COMPLETE, False),
)
_HEAD_COUNTS = (  # name, axis, curve, threshold, required
    ("k80", "method", "faithfulness", 0.8, True),
    ("k90", "method", "faithfulness", 0.9, True),
    ("k80_completeness", "method", "completeness", 0.8, False),
    ("k90_completeness", "method", "completeness", 0.9, False),
    ("random_k80", "draw", "faithfulness", 0.8, False),
    ("random_k90", "draw", "faithfulness", 0.9, False),
)
_VARIABLES = {
    name: Variable(dims=dims, description=text, unit="1", sign=sign, required=required)
    for name, dims, text, sign, required in _SHARES
} | {
    name: Variable(
        dims=(axis,),
        description=f"fewest heads whose mean {curve} reaches {threshold} (NaN = never)",
        unit="heads",
        required=required,
        nan=True,
    )
    for name, axis, curve, threshold, required in _HEAD_COUNTS
}


@final
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FaithfulnessResult(Result):
    r"""Curves over the number of heads: keep only a method's top heads, or remove only them.

    ``F(C) = (m(C) - m(∅)) / (m(M) - m(∅))`` and completeness ``1 - (m(M\\C) - m(∅)) / (m(M) - m(∅))``, with
    ``m(∅)`` the metric when every head is ablated. Dataset attributes: ``metric``, ``unit``, ``baseline``.
    """

    kind: ClassVar[str] = "faithfulness"
    main: ClassVar[str] = "faithfulness"
    variables: ClassVar[Mapping[str, Variable]] = _VARIABLES
    required_attrs: ClassVar[tuple[str, ...]] = ("metric", "unit", "baseline")
    plotter: ClassVar[str] = "mmlens.plots:curves"

    def check(self) -> None:
        """Sizes grow along their axis.

        Raises:
            ResultError: they do not.
        """
        sizes = self.data["size"].values
        if (np.diff(sizes) <= 0).any() or sizes[0] < 0:
            raise ResultError(
                f"head-set sizes must grow from 0 or more, got {sizes.tolist()[:12]}. Sort them."
            )

    @property
    def methods(self) -> list[str]:
        """Names of the compared methods, in order."""
        return [str(name) for name in self.data["method"].values.tolist()]

    def headline(self) -> str:
        """Area and k80 of the first method."""
        first = self.data.isel(method=0)
        k80 = float(first["k80"])
        reach = "never reaches 0.8" if np.isnan(k80) else f"{k80:.0f} heads reach 0.8"
        area = float(first["auc_faithfulness"].mean())
        return f"{self.methods[0]}: faithfulness area {area:.2f}, {reach} (n = {self.n})"
