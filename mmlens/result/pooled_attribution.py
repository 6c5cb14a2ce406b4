"""Pooled head attribution: one map for a set of prompts, and how well it describes each of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import pandas as pd
import xarray as xr

from mmlens.errors import ResultError
from mmlens.result.attribution import cost, runs_per_second
from mmlens.result.base import REMOVAL_SIGN, Result
from mmlens.result.schema import Variable

_SAMPLE = ("sample",)
_HEADS = ("layer", "head")


@final
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PooledAttributionResult(Result):
    """One attribution that several prompts share, an intercept for each, and the evidence prompt by prompt.

    Dataset attributes: ``metric`` (what is explained), ``unit`` of it, ``baseline`` (what an ablated head reads),
    ``estimator``, ``design`` (how masks were drawn).
    """

    kind: ClassVar[str] = "pooled_attribution"
    main: ClassVar[str] = "theta"
    of_all_samples: ClassVar[bool] = True
    variables: ClassVar[Mapping[str, Variable]] = {
        "theta": Variable(
            dims=_HEADS,
            description="regression coefficient common to all prompts: change of the metric when this head may read "
            "the image",
            sign=REMOVAL_SIGN,
        ),
        "interval": Variable(
            dims=(*_HEADS, "bound"),
            description="95 % bootstrap interval of theta over masks, for these prompts",
            sign=REMOVAL_SIGN,
        ),
        "split_half": Variable(
            dims=(),
            description="Pearson correlation of theta between two halves of every prompt's masks",
            unit="1",
            nan=True,
        ),
        "reliability": Variable(
            dims=(),
            description="expected correlation of theta with that of as many fresh masks (Spearman-Brown value of "
            "split_half)",
            unit="1",
            nan=True,
        ),
        "intercept": Variable(dims=_SAMPLE, description="the prompt's fitted metric with every head ablated"),
        "clean": Variable(dims=_SAMPLE, description="the metric with no head ablated"),
        "ablated": Variable(dims=_SAMPLE, description="the metric with every head ablated"),
        "n_masks": Variable(
            dims=_SAMPLE, description="random head masks used to fit", unit="masks", dtype="int"
        ),
        "r2": Variable(
            dims=_SAMPLE,
            description="coefficient of determination of the common theta on the prompt's fresh masks",
            unit="1",
            sign="1 = the common theta is the prompt's own, 0 = no better than a constant",
        ),
        "heldout_pearson": Variable(
            dims=_SAMPLE,
            description="Pearson correlation of predicted and measured metric on the prompt's fresh masks",
            unit="1",
            sign="1 = the same heads in the same proportions, 0 = unrelated",
        ),
        "slope": Variable(
            dims=_SAMPLE,
            description="how strongly the prompt reacts to what the common theta predicts (regression slope on its "
            "fresh masks)",
            unit="1",
            sign="1 = as strongly as predicted",
        ),
        "heldout_predicted": Variable(dims=("sample", "mask"), description="predicted metric of fresh masks"),
        "heldout_measured": Variable(dims=("sample", "mask"), description="measured metric of fresh masks"),
    }
    required_attrs: ClassVar[tuple[str, ...]] = ("metric", "unit", "baseline", "estimator", "design")
    plotter: ClassVar[str] = "mmlens.plots:head_map"

    def check(self) -> None:
        """Intervals are ordered.

        Raises:
            ResultError: a lower end lies above its upper end.
        """
        if (self.interval.sel(bound="lower") > self.interval.sel(bound="upper")).any():
            raise ResultError(
                "an interval of this attribution has its lower end above its upper end; swap them."
            )

    @property
    def theta(self) -> xr.DataArray:
        """Attribution [layer, head], metric's unit; positive = removing the head hurts the answers."""
        return self.data["theta"]

    @property
    def interval(self) -> xr.DataArray:
        """95 % bootstrap interval of theta [layer, head, bound], for these prompts, masks drawn anew."""
        return self.data["interval"]

    @property
    def r2(self) -> xr.DataArray:
        """How well the common theta predicts each prompt's fresh masks [sample]; 1 = perfect."""
        return self.data["r2"]

    @property
    def heldout_pearson(self) -> xr.DataArray:
        """The same as Pearson correlation [sample], which does not mind a prompt's strength."""
        return self.data["heldout_pearson"]

    @property
    def seconds(self) -> float | None:
        """Wall-clock time of the whole analysis; None where it was not recorded."""
        return self.info.seconds or None

    @property
    def masks_per_second(self) -> float | None:
        """Masked runs of the model over ``seconds``; None where either was not recorded."""
        return runs_per_second(self.info)

    def summary(self, sample: int | str | None = None) -> xr.Dataset:
        """Theta and its interval per head.

        Args:
            sample: None; single prompts have no theta of their own here.

        Returns:
            Dataset ``theta, lower, upper`` [layer, head] in the metric's unit.

        Raises:
            ResultError: a sample was named.
        """
        if sample is not None:
            raise ResultError(
                "a pooled attribution has one theta for all its samples; use head_attribution for maps of single ones."
            )
        ends = {name: self.interval.sel(bound=name, drop=True).drop_attrs() for name in ("lower", "upper")}
        view = xr.Dataset({"theta": self.theta.reset_coords(drop=True), **ends})
        return view.assign_attrs(interval=str(self.interval.attrs["description"]))

    def top(self, k: int = 10) -> pd.DataFrame:
        """The ``k`` heads with the largest theta.

        Args:
            k: how many heads.

        Returns:
            Columns layer, head, theta, lower, upper (metric's unit); largest first.
        """
        table = self.summary().to_dataframe().reset_index()
        return table.sort_values("theta", ascending=False, kind="stable").head(k).reset_index(drop=True)

    def per_prompt(self) -> pd.DataFrame:
        """One row per prompt: how well the common theta describes it, worst first.

        Returns:
            Columns sample, question, answer, r2, heldout_pearson, slope, clean, ablated, intercept, n_masks, those of
            them that are there.
        """
        names = ("r2", "heldout_pearson", "slope", "clean", "ablated", "intercept", "n_masks")
        labels = [name for name in ("question", "answer") if name in self.data.coords]
        table = self.data[list(names)].to_dataframe().reset_index()[["sample", *labels, *names]]
        return table.iloc[np.argsort(self.r2.values, kind="stable")].reset_index(drop=True)

    def headline(self) -> str:
        """Held-out fit over prompts, what it cost, and the strongest head."""
        best, r2 = self.top(1).iloc[0], self.r2.values
        return (
            f"one map for {self.n} prompts: held-out R² {np.median(r2):.2f} (median; worst {r2.min():.2f}), Pearson "
            f"{float(self.heldout_pearson.median()):.2f}, split-half r {float(self.data['split_half']):.2f}; "
            f"{cost(int(self.data['n_masks'].sum()), self.info)}; strongest head "
            f"L{int(best['layer'])}H{int(best['head'])} ({best['theta']:+.3g} {self.data.attrs['unit']})"
        )
