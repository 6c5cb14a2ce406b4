"""Layer × head heatmap of attributions or any other head score."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from mmlens.plots.theme import (
    DIVERGING,
    as_text,
    colour_bar,
    rounded,
    sample_names,
    sentence,
    symmetric_limit,
    titled,
    unit_alone,
    with_unit,
)
from mmlens.result import AttributionResult, HeadResult, PooledAttributionResult

MAX_MENU = 40
"""Samples offered in the menu beside their mean; more make the figure heavy."""


def head_map(
    result: HeadResult,
    *,
    sample: int | str | None = None,
    title: str | None = None,
    limit: float | None = None,
    menu: bool = True,
) -> go.Figure:
    """Every head's score as a heatmap, centred at 0; a dot marks heads whose interval excludes 0.

    Args:
        result: what to draw.
        sample: position or label; None draws the mean over samples, with a menu of the samples where there
            are several.
        title: heading; a plain one by default.
        limit: end of the colour scale, in the score's unit, to make several maps comparable.
        menu: whether to offer the single samples too.

    Returns:
        The figure. Positive (red) = removing the head hurts the answer, for attributions.
    """
    views = {"mean over samples" if result.n > 1 else "this sample": result.summary(sample)}
    single = "sample" in result.data[result.main].dims
    if menu and single and sample is None and 1 < result.n <= MAX_MENU:
        views |= dict(zip(_names(result), [result.summary(i) for i in range(result.n)], strict=True))
    name, unit, sign = _words(result)
    bound = limit or symmetric_limit(np.stack([view["theta"].values for view in views.values()]))
    figure = go.Figure()
    for i, view in enumerate(views.values()):
        figure.add_trace(_heat(view, name, unit, bound, visible=i == 0))
        figure.add_trace(_dots(view, visible=i == 0))
    first = next(iter(views.values()))
    n_layers, n_heads = first["theta"].shape
    _layout(figure, first, n_layers, n_heads)
    if len(views) > 1:
        _add_menu(figure, list(views))
    chosen = f"sample {sample}" if sample is not None else f"n = {result.n}"
    subtitle = (
        f"{sentence(with_unit(name, unit))}, {chosen}; {sign}. "
        f"Dot: interval excludes 0 ({first.attrs['interval']})."
    )
    height = min(900, 220 + (36 if n_layers <= 8 else 22) * n_layers)
    titled(figure, title or f"{sentence(name)} by head", subtitle, height)
    if len(views) > 1:
        figure.update_layout(margin_t=figure.to_dict()["layout"]["margin"]["t"] + 40)
    return figure


def _words(result: HeadResult) -> tuple[str, str, str]:
    """Name of the score, its unit and the meaning of its sign."""
    attrs = result.data.attrs
    if isinstance(result, AttributionResult | PooledAttributionResult):
        return f"attribution of the {attrs['metric']}", attrs["unit"], str(result.theta.attrs["sign"])
    return attrs["method"], attrs["unit"], attrs["sign"]


def _names(result: HeadResult) -> Sequence[str]:
    """Menu entries of the samples."""
    questions = result.data.coords.get("question")
    return sample_names(
        result.data["sample"].values.tolist(), None if questions is None else questions.values.tolist()
    )


def _heat(view: xr.Dataset, name: str, unit: str, bound: float, visible: bool) -> go.Heatmap:
    """The coloured cells."""
    bounds = np.stack([view["lower"].values, view["upper"].values], axis=-1)
    return go.Heatmap(
        x=view["head"].values,
        y=view["layer"].values,
        z=rounded(view["theta"].values),
        customdata=rounded(bounds),
        zmin=-bound,
        zmax=bound,
        colorscale=[list(stop) for stop in DIVERGING],
        colorbar=colour_bar(unit_alone(unit)),
        xgap=1,
        ygap=1,
        visible=visible,
        hovertemplate=(
            "layer %{y}, head %{x}<br><b>%{z:.3g}</b> "
            + as_text("" if unit == "1" else unit)
            + " [%{customdata[0]:.3g}, %{customdata[1]:.3g}]<extra></extra>"
        ),
        name=as_text(name),
    )


def _dots(view: xr.Dataset, visible: bool) -> go.Scatter:
    """A dot on every head whose interval excludes 0."""
    sure = (view["lower"].values > 0) | (view["upper"].values < 0)
    rows, columns = np.nonzero(sure)
    size = 6 if max(sure.shape) <= 16 else 4
    return go.Scatter(
        x=view["head"].values[columns],
        y=view["layer"].values[rows],
        mode="markers",
        marker={"size": size, "color": "white", "line": {"color": "black", "width": 1}},
        hoverinfo="skip",
        showlegend=False,
        visible=visible,
        name="interval excludes 0",
    )


def _layout(figure: go.Figure, view: xr.Dataset, n_layers: int, n_heads: int) -> None:
    """Whole cells, layer 0 at the top, at most about 16 ticks."""
    plain = {"showgrid": False, "showline": False, "ticks": ""}
    layers, heads = view["layer"].values, view["head"].values
    figure.update_xaxes(title_text="head", dtick=-(-n_heads // 16), tick0=int(heads[0]), **plain)
    figure.update_yaxes(title_text="layer", dtick=-(-n_layers // 16), tick0=int(layers[0]), **plain)
    figure.update_xaxes(range=[heads.min() - 0.5, heads.max() + 0.5])
    figure.update_yaxes(range=[layers.max() + 0.5, layers.min() - 0.5])


def _add_menu(figure: go.Figure, names: Sequence[str]) -> None:
    """A menu that shows one view at a time."""
    buttons = [
        {
            "label": name,
            "method": "restyle",
            "args": [{"visible": [j // 2 == i for j in range(2 * len(names))]}],
        }
        for i, name in enumerate(names)
    ]
    figure.update_layout(
        updatemenus=[
            {
                "buttons": buttons,
                "x": 0,
                "xanchor": "left",
                "y": 1.02,
                "yanchor": "bottom",
                "pad": {"b": 4},
                "font": {"size": 12},
                "bgcolor": "white",
            }
        ]
    )
