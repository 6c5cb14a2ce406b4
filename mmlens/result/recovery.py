"""How well attribution methods find the heads that a planted model really uses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import xarray as xr

from mmlens.errors import ResultError
from mmlens.result.base import REMOVAL_SIGN, Result
from mmlens.result.schema import Variable

_METHOD = ("method",)
_HEADS = ("layer", "head")
_CORRELATION = "1 = as the exact values, 0 = unrelated, NaN = the scores or the exact values are constant"

_SHARES = (  # name, description, sign
    (
        "auroc",
        "chance that a head in use outscores one that is not",
        "1 = every head in use comes first, 0.5 = guessing",
    ),
    (
        "average_precision",
        "precision over the heads in use, mean over their places in the ranking",
        "1 = every head in use comes first; guessing scores about the share of heads in use",
    ),
    (
        "recovered_at_k",
        "share of the k heads in use that are among the top k; ties count as broken at random",
        "1 = all of them",
    ),
)
_MERITS = (  # name, description, sign, unit, required, may be NaN
    *((name, text, sign, "1", True, False) for name, text, sign in _SHARES),
    ("correlation", "Pearson correlation with the exact values, all heads", _CORRELATION, "1", True, True),
    (
        "rank_correlation",
        "Spearman correlation with the exact values, all heads",
        _CORRELATION,
        "1",
        True,
        True,
    ),
    (
        "error",
        "root mean square difference from the exact values, all heads (NaN = not comparable, see comparable)",
        "0 = exact",
        None,
        False,
        True,
    ),
)
_VARIABLES = {
    name: Variable(dims=_METHOD, description=text, unit=unit, sign=sign, required=required, nan=nan)
    for name, text, sign, unit, required, nan in _MERITS
} | {
    f"{name}_interval": Variable(
        dims=("method", "bound"),
        description=f"95 % bootstrap interval over samples of {name} (NaN = one map, or undefined in a draw)",
        unit=unit,
        sign=sign,
        required=False,
        nan=True,
    )
    for name, _, sign, unit, _, _ in _MERITS
}


@final
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RecoveryResult(Result):
    """Head scores of one or more methods, judged by what is exactly known of a planted model.

    Dataset attributes: ``family`` (of questions), ``baseline``, ``index`` (kind of the exact values),
    ``metric`` and ``unit`` of the exact values.
    """

    kind: ClassVar[str] = "recovery"
    main: ClassVar[str] = "auroc"
    variables: ClassVar[Mapping[str, Variable]] = _VARIABLES | {
        "exact_recovery": Variable(
            dims=_METHOD,
            description="1 = every head in use outscores every other head, 0 = not",
            unit="",
            dtype="int",
        ),
        "comparable": Variable(
            dims=_METHOD,
            description="1 = the scores state the unit (and, if any, the metric) of the exact values, so that "
            "their error has a meaning, 0 = not",
            unit="",
            dtype="int",
        ),
        "n_samples": Variable(
            dims=_METHOD, description="samples whose mean was judged", unit="samples", dtype="int"
        ),
        "exact_value": Variable(dims=_HEADS, description="exact value of each head", sign=REMOVAL_SIGN),
        "in_use": Variable(
            dims=_HEADS, description="1 = the family of questions uses this head", unit="", dtype="int"
        ),
    }
    required_attrs: ClassVar[tuple[str, ...]] = ("family", "baseline", "index", "metric", "unit")
    plotter: ClassVar[str] = "mmlens.plots:recovery_bars"

    def check(self) -> None:
        """Shares lie in [0, 1], and an error is there for exactly the comparable methods.

        Raises:
            ResultError: one of these is not so.
        """
        for name, _, _ in _SHARES:
            low, high = float(self.data[name].min()), float(self.data[name].max())
            if low < 0 or high > 1:
                raise ResultError(f"{name} must lie in [0, 1], got {low:g} to {high:g}.")
        comparable = self.data["comparable"].values == 1
        known = self.data["error"].notnull().values if "error" in self.data else comparable & False
        if (known != comparable).any():
            raise ResultError(
                "a method has an error if and only if its scores are comparable to the exact values; error "
                f"and comparable disagree for {self.data['method'].values[known != comparable].tolist()}."
            )

    @property
    def methods(self) -> list[str]:
        """Names of the judged methods, in order."""
        return [str(name) for name in self.data["method"].values.tolist()]

    @property
    def error(self) -> xr.DataArray:
        """Error [method] of the comparable methods only, in the metric's unit; never NaN.

        Raises:
            ResultError: no method's scores have the unit of the exact values.
        """
        if "error" not in self.data:
            raise ResultError(
                f"none of these scores states the unit of the exact values ({self.data.attrs['unit']}), so no "
                "error can be given. Give results, or arrays with attrs['unit']."
            )
        return self.data["error"].isel(method=self.data["comparable"].values == 1)

    def headline(self) -> str:
        """Figures of merit of the first method."""
        first = self.data.isel(method=0)
        return (
            f"{self.methods[0]}: AUROC {float(first['auroc']):.2f}, average precision "
            f"{float(first['average_precision']):.2f}, finds {float(first['recovered_at_k']):.0%} of the "
            f"{int(self.data['in_use'].sum())} heads that {self.data.attrs['family']} uses"
        )
