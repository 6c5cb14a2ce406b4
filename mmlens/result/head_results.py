"""Results that give every head a score: what whoever ranks, compares or judges heads takes."""

import xarray as xr

from mmlens.result.attribution import AttributionResult
from mmlens.result.head_score import HeadScoreResult
from mmlens.result.pooled_attribution import PooledAttributionResult

HeadResult = AttributionResult | HeadScoreResult | PooledAttributionResult


def mean_map(result: HeadResult) -> xr.DataArray:
    """One score per head [layer, head] in the result's unit: the mean over samples, or what they have in common."""
    scores = result.data[result.main]
    return scores.mean("sample", keep_attrs=True) if "sample" in scores.dims else scores
