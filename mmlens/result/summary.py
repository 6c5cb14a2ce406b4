"""Per-head summaries over samples, shared by results and plots."""

import numpy as np
import xarray as xr


def mean_interval(values: np.ndarray, axis: int = 0, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Ends of Student's t interval of a mean.

    Args:
        values: observations along ``axis``; at least two.
        axis: axis of the observations.
        level: coverage.

    Returns:
        Lower and upper end, with ``axis`` removed, in the unit of ``values``.
    """
    from scipy.special import stdtrit

    count = values.shape[axis]
    mean = values.mean(axis=axis)
    half = stdtrit(count - 1, 0.5 + level / 2) * values.std(axis=axis, ddof=1) / np.sqrt(count)
    return mean - half, mean + half


def head_summary(values: xr.DataArray, interval: xr.DataArray | None) -> xr.Dataset:
    """One value per head, with an interval that says what it is an interval of.

    With one sample it is the interval that came with it (e.g. a bootstrap over masks). With several, the
    samples are the units of evidence: the mean over samples and Student's 95 % t interval of that mean.

    Args:
        values: score of every head [sample, layer, head].
        interval: interval of every value [sample, layer, head, bound], if there is one.

    Returns:
        Dataset ``theta, lower, upper`` [layer, head] in the unit of ``values``; NaN bounds where nothing is
        known. Its attribute ``interval`` says which interval it is.
    """
    mean = values.mean("sample", keep_attrs=True)
    if values.sizes["sample"] > 1:
        low, high = mean_interval(values.values)
        what = f"95 % t interval of the mean over {values.sizes['sample']} samples"
    elif interval is not None:
        low, high = interval.values[0, ..., 0], interval.values[0, ..., 1]
        what = str(interval.attrs.get("description") or "interval of this sample")
    else:
        low = high = np.full(mean.shape, np.nan)
        what = "no interval"
    bounds = {"lower": (mean.dims, low), "upper": (mean.dims, high)}
    return xr.Dataset({"theta": mean.reset_coords(drop=True), **bounds}, attrs={"interval": what})
