"""The trained model beside the same model with random weights, on every figure of merit."""

import numpy as np
import plotly.graph_objects as go

from mmlens.plots.theme import CHANCE, LINES, as_text, number, rounded, titled
from mmlens.result import AttributionResult, FaithfulnessResult

DRAWN = (-1.0, 1.5)
"""Values beyond are drawn at the edge: R² has no lower limit, and shares of a tiny effect have none at all."""


def control_bars(
    trained: AttributionResult,
    control: AttributionResult,
    *,
    comparisons: FaithfulnessResult | None = None,
    control_comparisons: FaithfulnessResult | None = None,
    title: str | None = None,
) -> go.Figure:
    """Held-out R² and Pearson, and the areas of the first method's curves; every sample a dot.

    Args:
        trained: attribution of the model in question.
        control: attribution of the random-weight model.
        comparisons: curves of the model in question.
        control_comparisons: curves of the random-weight model.
        title: heading; a plain one by default.

    Returns:
        The figure; all values have no unit and 1 is best.
    """
    figure = go.Figure()
    pairs = (
        (trained, comparisons, LINES[0], trained.info.model_id),
        (control, control_comparisons, CHANCE, control.info.model_id),
    )
    for attribution, curves, colour, name in pairs:
        values = _merits(attribution, curves)
        _add_model(figure, values, colour, as_text(name, 32))
    figure.update_layout(barmode="group", boxmode="group", bargap=0.3)
    figure.add_hline(y=0, line={"color": "black", "width": 1})
    figure.update_yaxes(title_text="value (1 = best)")
    subtitle = (
        "Held-out R² and Pearson of the attribution, and area under the curves of the first method; bars: "
        f"mean, dots: samples (n = {trained.n} and {control.n}). Numbers: true means; beyond −1 or 1.5 bars "
        "and dots stop."
    )
    return titled(figure, title or "Trained weights and random weights", subtitle, 420)


def _merits(attribution: AttributionResult, curves: FaithfulnessResult | None) -> dict[str, np.ndarray]:
    """Values of every sample per figure of merit."""
    merits = {
        "held-out<br>R²": attribution.r2.values,
        "held-out<br>Pearson": attribution.heldout_pearson.values,
    }
    if curves is not None:
        merits["faithfulness<br>area"] = curves.data["auc_faithfulness"].values[0]
        merits["completeness<br>area"] = curves.data["auc_completeness"].values[0]
    return merits


def _add_model(figure: go.Figure, values: dict[str, np.ndarray], colour: str, name: str) -> None:
    """Bars of the means, and the samples as dots inside an invisible box plot that stands on the bar."""
    known = {merit: row[np.isfinite(row)] for merit, row in values.items()}
    means = [float(row.mean()) if row.size else None for row in known.values()]
    figure.add_trace(
        go.Bar(
            x=list(known),
            y=[None if mean is None else float(np.clip(mean, *DRAWN)) for mean in means],
            marker={"color": colour, "opacity": 0.75},
            name=name,
            legendgroup=name,
            offsetgroup=name,
            text=["undefined" if mean is None else number(mean) for mean in means],
            textposition="inside",
            insidetextanchor="start",
            hovertemplate="%{x}: %{text}<extra>" + name + "</extra>",
        )
    )
    figure.add_trace(
        go.Box(
            x=[merit for merit, row in known.items() for _ in row],
            y=rounded(np.clip(np.concatenate(list(known.values())), *DRAWN)),
            boxpoints="all",
            jitter=0.5,
            pointpos=0,
            fillcolor="rgba(0,0,0,0)",
            line={"color": "rgba(0,0,0,0)"},
            marker={"size": 5, "color": colour, "line": {"color": "white", "width": 1}},
            hoverinfo="skip",
            showlegend=False,
            legendgroup=name,
            offsetgroup=name,
        )
    )
