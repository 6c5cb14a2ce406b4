"""Faithfulness and completeness against the number of heads, one line per method, random heads as a band."""

from typing import Literal

import numpy as np
import plotly.graph_objects as go

from mmlens.plots.theme import CHANCE, LINES, as_text, rounded, titled
from mmlens.result import FaithfulnessResult

Curve = Literal["faithfulness", "completeness"]
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_MEANING = {
    "faithfulness": "share of the effect that the top heads alone restore",
    "completeness": "share of the effect that is lost without the top heads",
}


def curves(
    result: FaithfulnessResult, *, which: Curve = "faithfulness", title: str | None = None
) -> go.Figure:
    """One curve over head-set sizes: mean over samples per method, with its interval, and random heads.

    Args:
        result: what to draw.
        which: keep only the top heads (``faithfulness``) or remove only them (``completeness``).
        title: heading; a plain one by default.

    Returns:
        The figure. 1 = the whole effect; random sets are drawn as median and interquartile range over draws.
    """
    figure = go.Figure()
    sizes = result.data["size"].values
    for level in (0.8, 1.0):
        figure.add_hline(y=level, line={"color": CHANCE, "width": 1, "dash": "dot"}, opacity=0.6)
    if f"random_{which}" in result.data:
        _add_random(figure, result, which, sizes)
    for i, method in enumerate(result.methods):
        _add_method(figure, result, which, sizes, i, method)
    n_draws = result.data.sizes.get("draw", 0)
    subtitle = (
        f"{which.capitalize()}: {_MEANING[which]}, in {result.data.attrs['metric']}; n = {result.n} samples; "
        f"ablated heads read {result.data.attrs['baseline']}. Bands: 95 % interval of the mean"
        + (f"; random: median and quartiles of {n_draws} draws." if n_draws else ".")
    )
    figure.update_xaxes(
        title_text="heads kept" if which == "faithfulness" else "heads removed", rangemode="tozero"
    )
    figure.update_yaxes(title_text=which)
    default = (
        "How few heads are enough" if which == "faithfulness" else "How much is lost without the top heads"
    )
    return titled(figure, title or default, subtitle, 460)


def _add_method(
    figure: go.Figure, result: FaithfulnessResult, which: Curve, sizes: np.ndarray, i: int, method: str
) -> None:
    """The line of one method, its band, and its area and k80 in the legend."""
    colour = LINES[i % len(LINES)]
    data = result.data.isel(method=i)
    if f"{which}_interval" in data:
        _add_band(figure, sizes, data[f"{which}_interval"].values, colour, group=method)
    k80_name = "k80" if which == "faithfulness" else "k80_completeness"
    legend = f"area {float(data[f'auc_{which}'].mean()):.2f}"
    if k80_name in data:
        k80 = float(data[k80_name])
        legend += ", never at 0.8" if np.isnan(k80) else f", 0.8 at {k80:.0f} heads"
    figure.add_trace(
        go.Scatter(
            x=sizes,
            y=rounded(data[which].values.mean(axis=0)),
            mode="lines+markers",
            marker={"size": 5},
            line={"color": colour, "width": 2.5, "dash": _DASHES[i % len(_DASHES)]},
            name=f"{as_text(method)} ({legend})",
            legendgroup=as_text(method),
            hovertemplate=f"{as_text(method)}<br>%{{x}} heads: %{{y:.3f}}<extra></extra>",
        )
    )


def _add_random(figure: go.Figure, result: FaithfulnessResult, which: Curve, sizes: np.ndarray) -> None:
    """Median and interquartile range over random draws, each averaged over samples first."""
    draws = result.data[f"random_{which}"].mean("sample").values
    low, middle, high = np.quantile(draws, [0.25, 0.5, 0.75], axis=0)
    _add_band(figure, sizes, np.stack([low, high], axis=-1), CHANCE, group="random heads")
    area = result.data.get(f"random_auc_{which}")
    note = "" if area is None else f" (area {float(area.mean('sample').median()):.2f})"
    figure.add_trace(
        go.Scatter(
            x=sizes,
            y=rounded(middle),
            mode="lines",
            line={"color": CHANCE, "width": 2},
            name=f"random heads{note}",
            legendgroup="random heads",
            hovertemplate="random, median<br>%{x} heads: %{y:.3f}<extra></extra>",
        )
    )


def _add_band(figure: go.Figure, sizes: np.ndarray, bounds: np.ndarray, colour: str, group: str) -> None:
    """A shaded band between two ends [size, bound]."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    figure.add_trace(
        go.Scatter(
            x=np.concatenate([sizes, sizes[::-1]]),
            y=rounded(np.concatenate([bounds[:, 0], bounds[::-1, 1]])),
            fill="toself",
            fillcolor=f"rgba({red},{green},{blue},0.15)",
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
            legendgroup=as_text(group),
        )
    )
