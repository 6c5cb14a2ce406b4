"""A score per head by any other method, such as single-head ablation or attention weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import xarray as xr

from mmlens.result.base import Result
from mmlens.result.schema import Variable
from mmlens.result.summary import head_summary

_HEADS = ("sample", "layer", "head")


@final
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class HeadScoreResult(Result):
    """One score per head and sample.

    Dataset attributes: ``method`` (its name in figures), ``unit``, ``sign`` (what positive scores mean).
    """

    kind: ClassVar[str] = "head_score"
    main: ClassVar[str] = "score"
    variables: ClassVar[Mapping[str, Variable]] = {
        "score": Variable(dims=_HEADS, description="score of each head"),
        "interval": Variable(dims=(*_HEADS, "bound"), description="interval of each score", required=False),
    }
    required_attrs: ClassVar[tuple[str, ...]] = ("method", "unit", "sign")
    plotter: ClassVar[str] = "mmlens.plots:head_map"

    @property
    def score(self) -> xr.DataArray:
        """Score [sample, layer, head], in the method's unit and sign."""
        return self.data["score"]

    def summary(self, sample: int | str | None = None) -> xr.Dataset:
        """One value and interval per head, as ``AttributionResult.summary`` (its value is ``theta`` too).

        Args:
            sample: position or label; None for the mean over all samples.
        """
        chosen = self if sample is None else self.select(sample)
        return head_summary(chosen.score, chosen.data.get("interval"))

    def headline(self) -> str:
        """The method and its strongest head."""
        mean = self.score.mean("sample")
        best = mean.argmax(...)  # {"layer": …, "head": …}
        at = {str(dim): int(index) for dim, index in best.items()}
        layer, head = int(mean["layer"][at["layer"]]), int(mean["head"][at["head"]])
        return f"{self.data.attrs['method']}: strongest head L{layer}H{head} ({float(mean.max()):+.3g})"
