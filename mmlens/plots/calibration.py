"""Predicted against measured metric on fresh masks: does the attribution predict ablation?"""

import numpy as np
import plotly.graph_objects as go

from mmlens.errors import ResultError
from mmlens.plots.theme import CHANCE, LINES, as_text, rounded, sample_names, sentence, titled, with_unit
from mmlens.result import AttributionResult


def calibration(result: AttributionResult, *, title: str | None = None) -> go.Figure:
    """Every held-out mask as a point; on the diagonal, prediction and measurement agree.

    Args:
        result: must hold ``heldout_predicted`` and ``heldout_measured``.
        title: heading; a plain one by default.

    Returns:
        The figure, both axes in the metric's unit.

    Raises:
        ResultError: the result holds no held-out predictions.
    """
    if "heldout_measured" not in result.data:
        raise ResultError("this attribution holds no held-out predictions; fit it with held-out masks.")
    measured, predicted = (result.data[f"heldout_{name}"].values for name in ("measured", "predicted"))
    ends = [float(np.nanmin([measured, predicted])), float(np.nanmax([measured, predicted]))]
    figure = go.Figure(
        go.Scatter(
            x=ends, y=ends, mode="lines", line={"color": CHANCE, "dash": "dot"}, name="predicted = measured"
        )
    )
    names = sample_names(result.data["sample"].values.tolist(), None)
    many = len(names) > len(LINES)
    for i, name in enumerate(names):
        figure.add_trace(
            go.Scatter(
                x=rounded(predicted[i]),
                y=rounded(measured[i]),
                mode="markers",
                marker={"size": 5, "opacity": 0.55, "color": LINES[0 if many else i]},
                name=name,
                showlegend=not many,
                hovertemplate=f"{name}<br>predicted %{{x:.3g}}, measured %{{y:.3g}}<extra></extra>",
            )
        )
    attrs = result.data.attrs
    figure.update_xaxes(title_text=as_text(with_unit(f"predicted {attrs['metric']}", attrs["unit"])))
    figure.update_yaxes(title_text=as_text(with_unit(f"measured {attrs['metric']}", attrs["unit"])))
    held = int(np.isfinite(measured).sum())
    subtitle = (
        f"{sentence(attrs['metric'])} of {held} fresh masks, n = {result.n} "
        f"samples; mean R² {float(result.r2.mean()):.2f}, mean Pearson "
        f"{float(result.heldout_pearson.mean()):.2f}. Each point is one random set of ablated heads."
    )
    return titled(figure, title or "Predicted and measured effect of ablation", subtitle, 460)
