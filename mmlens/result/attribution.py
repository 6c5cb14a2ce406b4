"""Head attribution: how much each head's view of the image changes the answer, and how sure that is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import pandas as pd
import xarray as xr

from mmlens.errors import ResultError
from mmlens.result.base import REMOVAL_SIGN, Result
from mmlens.result.provenance import RunInfo
from mmlens.result.schema import Variable
from mmlens.result.summary import head_summary

_SAMPLE = ("sample",)
_HEADS = ("sample", "layer", "head")

_FIT = {
    "theta": Variable(
        dims=_HEADS,
        description="regression coefficient: change of the metric when this head may read the image",
        sign=REMOVAL_SIGN,
    ),
    "interval": Variable(
        dims=(*_HEADS, "bound"), description="95 % bootstrap interval of theta over masks", sign=REMOVAL_SIGN
    ),
    "intercept": Variable(dims=_SAMPLE, description="the fitted metric with every head ablated"),
    "clean": Variable(dims=_SAMPLE, description="the metric with no head ablated"),
    "ablated": Variable(dims=_SAMPLE, description="the metric with every head ablated"),
    "n_masks": Variable(dims=_SAMPLE, description="random head masks used to fit", unit="masks", dtype="int"),
}
_EVIDENCE = {
    "r2": Variable(
        dims=_SAMPLE,
        description="coefficient of determination on fresh masks that were not used to fit",
        unit="1",
        sign="1 = perfect, 0 = no better than a constant",
        nan=True,
    ),
    "heldout_pearson": Variable(
        dims=_SAMPLE,
        description="Pearson correlation of predicted and measured metric on fresh masks",
        unit="1",
        sign="1 = perfect, 0 = unrelated",
        nan=True,
    ),
    "split_half": Variable(
        dims=_SAMPLE,
        description="Pearson correlation of theta between two halves of the masks",
        unit="1",
        required=False,
        nan=True,
    ),
    "heldout_predicted": Variable(
        dims=("sample", "mask"), description="predicted metric of fresh masks", required=False, nan=True
    ),
    "heldout_measured": Variable(
        dims=("sample", "mask"), description="measured metric of fresh masks", required=False, nan=True
    ),
}
_DRAWING = {
    "image": Variable(
        dims=("sample", "pixel_row", "pixel_col", "channel"),
        description="thumbnail of the image, padded to the largest",
        unit="0-255",
        dtype="uint8",
        required=False,
    ),
    "image_height": Variable(
        dims=_SAMPLE, description="height of the thumbnail", unit="pixels", dtype="int", required=False
    ),
    "image_width": Variable(
        dims=_SAMPLE, description="width of the thumbnail", unit="pixels", dtype="int", required=False
    ),
    "cell_box": Variable(
        dims=("sample", "row", "col", "side"),
        description="where each image cell lies",
        unit="fraction of image width and height",
        required=False,
        nan=True,
    ),
    "cell_weight": Variable(
        dims=("sample", "row", "col"),
        description="attention from text to each image cell, summed over heads and weighted with theta",
        sign="positive = read by heads that support the answer",
        required=False,
        nan=True,
    ),
    "token": Variable(
        dims=("sample", "pos"), description="tokens of the prompt", unit="", dtype="text", required=False
    ),
    "role": Variable(
        dims=("sample", "pos"), description="role of each token", unit="", dtype="text", required=False
    ),
}


@final
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AttributionResult(Result):
    """Attribution of the answer to attention heads, with the evidence that it predicts what ablation does.

    Dataset attributes: ``metric`` (what is explained), ``unit`` of it, ``baseline`` (what an ablated head
    reads), ``estimator`` (least squares, ridge, …), ``design`` (how masks were drawn).
    """

    kind: ClassVar[str] = "attribution"
    main: ClassVar[str] = "theta"
    variables: ClassVar[Mapping[str, Variable]] = _FIT | _EVIDENCE | _DRAWING
    required_attrs: ClassVar[tuple[str, ...]] = ("metric", "unit", "baseline", "estimator", "design")
    plotter: ClassVar[str] = "mmlens.plots:head_map"

    def check(self) -> None:
        """Intervals are ordered, and drawing variables come in complete sets.

        Raises:
            ResultError: a lower end lies above its upper end, or half of a set is missing.
        """
        if (self.interval.sel(bound="lower") > self.interval.sel(bound="upper")).any():
            raise ResultError(
                "an interval of this attribution has its lower end above its upper end; swap them."
            )
        for group in (
            ("image", "image_height", "image_width"),
            ("token", "role"),
            ("cell_box", "cell_weight"),
            ("heldout_predicted", "heldout_measured"),
        ):
            present = [name for name in group if name in self.data]
            if present and len(present) < len(group) and present != ["cell_box"]:
                raise ResultError(
                    f"{', '.join(group)} belong together, but only {', '.join(present)} was given."
                )
        if "cell_weight" in self.data and "image" not in self.data:
            raise ResultError("cell_weight needs image: add both with image_variables(images=…, weights=…).")

    @property
    def theta(self) -> xr.DataArray:
        """Attribution [sample, layer, head], metric's unit; positive = removing the head hurts the answer."""
        return self.data["theta"]

    @property
    def interval(self) -> xr.DataArray:
        """95 % bootstrap interval of theta [sample, layer, head, bound], in the metric's unit."""
        return self.data["interval"]

    @property
    def r2(self) -> xr.DataArray:
        """Held-out coefficient of determination [sample]; 1 = perfect, NaN = the metric never changed."""
        return self.data["r2"]

    @property
    def heldout_pearson(self) -> xr.DataArray:
        """Held-out Pearson correlation [sample]; NaN = undefined."""
        return self.data["heldout_pearson"]

    def summary(self, sample: int | str | None = None) -> xr.Dataset:
        """One value and one interval per head, of one sample or of the mean over all.

        Args:
            sample: position or label; None for all samples.

        Returns:
            Dataset ``theta, lower, upper`` [layer, head] in the metric's unit. The interval is the bootstrap
            interval of a single sample, or the t interval of the mean over several.
        """
        chosen = self if sample is None else self.select(sample)
        return head_summary(chosen.theta, chosen.interval)

    def top(self, k: int = 10, sample: int | str | None = None) -> pd.DataFrame:
        """The ``k`` heads with the largest theta.

        Args:
            k: how many heads.
            sample: position or label; None for the mean over all samples.

        Returns:
            Columns layer, head, theta, lower, upper (metric's unit); largest first.
        """
        table = self.summary(sample).to_dataframe().reset_index()
        return table.sort_values("theta", ascending=False, kind="stable").head(k).reset_index(drop=True)

    @property
    def seconds(self) -> float | None:
        """Wall-clock time of the analysis, all samples; None where it was not recorded, as in a sweep."""
        return self.info.seconds or None

    @property
    def masks_per_second(self) -> float | None:
        """Masked runs of the model over ``seconds``; None where either was not recorded."""
        return runs_per_second(self.info)

    def headline(self) -> str:
        """Held-out fit, agreement of halves, what it cost, and the strongest head."""
        best = self.top(1).iloc[0]
        halves = f", split-half r {mean_text(self.data['split_half'])}" if "split_half" in self.data else ""
        return (
            f"held-out R² {mean_text(self.r2)}, Pearson {mean_text(self.heldout_pearson)}{halves} (mean of {self.n}); "
            f"{cost(int(self.data['n_masks'].sum()), self.info)}; strongest head "
            f"L{int(best['layer'])}H{int(best['head'])} ({best['theta']:+.3g} {self.data.attrs['unit']})"
        )


def mean_text(values: xr.DataArray) -> str:
    """Mean of the defined values with two digits, or ``undefined``."""
    known = values.values[~np.isnan(values.values)]
    return f"{known.mean():.2f}" if known.size else "undefined"


def runs_per_second(info: RunInfo) -> float | None:
    """Masked runs of the model over wall-clock time, images and fits included; None where either is unknown."""
    n_runs = info.settings.get("n_runs")
    return n_runs / info.seconds if isinstance(n_runs, int) and info.seconds > 0 else None


def cost(n_masks: int, info: RunInfo) -> str:
    """Masks that were fitted, and the time where it is known: ``384 masks in 0.9 s (650 masks/s)``."""
    text, rate = f"{n_masks} masks", runs_per_second(info)
    text += f" in {info.seconds:.3g} s" if info.seconds else ""
    return text + (f" ({rate:.3g} masks/s)" if rate is not None else "")
