"""Accuracy with and without the image's path into the text, beside the majority rate."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from mmlens.plots.theme import CHANCE, INK, LINES, as_text, rounded, titled
from mmlens.result import AccuracyResult

_PATTERNS = ("", "/", ".", "x", "\\", "-", "|", "+")
"""One per condition; more conditions than these look alike and are told apart by the hover text."""


def accuracy_bars(
    results: AccuracyResult | Mapping[str, AccuracyResult], *, title: str | None = None
) -> go.Figure:
    """Accuracy per question family, one bar per model and condition; a line marks what guessing scores.

    Args:
        results: one result, or several by the name of their model (trained first).
        title: heading; a plain one by default.

    Returns:
        The figure; shares of correct answers, error bars where the results have intervals.
    """
    named = {results.info.model_id: results} if isinstance(results, AccuracyResult) else dict(results)
    figure = go.Figure()
    for i, (model, result) in enumerate(named.items()):
        colour = LINES[0] if i == 0 else CHANCE if i == 1 else LINES[i]
        for j, condition in enumerate(result.data["condition"].values.tolist()):
            label = f"{model}, {condition}" if len(named) > 1 else condition
            _add_bars(figure, result, j, as_text(label, 48), colour)
    first = next(iter(named.values()))
    _add_majority(figure, first)
    families = [as_text(family) for family in first.data["family"].values.tolist()]
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_xaxes(tickvals=list(range(len(families))), ticktext=families, showgrid=False)
    figure.update_yaxes(title_text="accuracy", range=[0, 1.03])
    counts = ", ".join(str(count) for count in np.unique(first.data["n"].values).tolist())
    subtitle = (
        f"Share of correct answers on {first.data.attrs['dataset']}; n = {counts} questions per family. "
        f"Not clean: {first.data.attrs['intervention']}."
    )
    return titled(figure, title or "Accuracy with and without the image", subtitle, 420)


def _add_majority(figure: go.Figure, result: AccuracyResult) -> None:
    """A line across the bars of each family at the share that guessing scores."""
    x: list[float | None] = []
    y: list[float | None] = []
    for i, share in enumerate(result.data["majority"].values.tolist()):
        x += [i - 0.45, i + 0.45, None]
        y += [share, share, None]
    figure.add_trace(
        go.Scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": INK, "width": 2},
            name="majority rate (guessing)",
            hovertemplate="majority rate %{y:.3f}<extra></extra>",
        )
    )


def _add_bars(figure: go.Figure, result: AccuracyResult, j: int, label: str, colour: str) -> None:
    """The bars of one model in one condition."""
    data = result.data.isel(condition=j)
    error = None
    if "interval" in data:
        ends = data["interval"].values
        shares = data["accuracy"].values
        error = {
            "type": "data",
            "symmetric": False,
            "array": rounded(ends[:, 1] - shares),
            "arrayminus": rounded(shares - ends[:, 0]),
            "thickness": 1.2,
            "width": 3,
        }
    figure.add_trace(
        go.Bar(
            x=list(range(data.sizes["family"])),
            y=rounded(data["accuracy"].values),
            customdata=[as_text(family) for family in data["family"].values.tolist()],
            name=label,
            error_y=error,
            marker={
                "color": colour,
                "opacity": 0.9 if j == 0 else 0.55,
                "pattern": {"shape": _PATTERNS[j % len(_PATTERNS)]},
            },
            hovertemplate="%{customdata}: %{y:.3f}<extra>" + label + "</extra>",
        )
    )
