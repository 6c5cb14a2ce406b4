"""How well each method finds the heads in use of a planted model."""

import numpy as np
import plotly.graph_objects as go

from mmlens.plots.exact_bars import INDEX_NAMES
from mmlens.plots.theme import CHANCE, INK, LINES, as_text, rounded, titled
from mmlens.result import RecoveryResult

_MERITS = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "recovered_at_k": "found in the top k",
    "correlation": "correlation with exact values",
}


def recovery_bars(result: RecoveryResult, *, title: str | None = None) -> go.Figure:
    """Four figures of merit per method, 1 the best of each; a dotted line marks the AUROC of guessing.

    Args:
        result: what to draw.
        title: heading; a plain one by default.

    Returns:
        The figure; no unit. Error bars where a method scored several samples, no bar where undefined.
    """
    figure = go.Figure()
    for i, (name, label) in enumerate(_MERITS.items()):
        _add_merit(figure, result, name, label, LINES[i])
    methods = [as_text(name, 32) for name in result.methods]
    figure.add_hline(y=0, line={"color": INK, "width": 1})
    figure.add_hline(y=0.5, line={"color": CHANCE, "width": 1, "dash": "dot"})
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_xaxes(tickvals=list(range(len(methods))), ticktext=methods, showgrid=False)
    figure.update_yaxes(title_text="value (1 = best)")
    attrs, k = result.data.attrs, int(result.data["in_use"].sum())
    exact = INDEX_NAMES.get(attrs["index"], attrs["index"])
    intervals = " Error bars: 95 % bootstrap over samples." if "auroc_interval" in result.data else ""
    subtitle = (
        f"Heads in use for {attrs['family']}: k = {k} of {result.data['in_use'].size}; exact values: {exact} in "
        f"{attrs['metric']}; closed heads read {attrs['baseline']}. Dotted: AUROC of guessing.{intervals}"
    )
    return titled(figure, title or "Which methods find the planted heads", subtitle, 420)


def _add_merit(figure: go.Figure, result: RecoveryResult, name: str, label: str, colour: str) -> None:
    """The bars of one figure of merit over methods."""
    values, error = result.data[name].values, None
    if f"{name}_interval" in result.data:
        ends = result.data[f"{name}_interval"].values
        error = {
            "type": "data",
            "symmetric": False,
            "array": _lengths(ends[:, 1] - values),
            "arrayminus": _lengths(values - ends[:, 0]),
            "thickness": 1.2,
            "width": 3,
        }
    figure.add_trace(
        go.Bar(
            x=list(range(len(values))),
            y=[None if np.isnan(value) else value for value in rounded(values).tolist()],
            customdata=[as_text(method) for method in result.methods],
            name=label,
            error_y=error,
            marker={"color": colour, "opacity": 0.85},
            hovertemplate="%{customdata}: %{y:.3f}<extra>" + label + "</extra>",
        )
    )


def _lengths(differences: np.ndarray) -> np.ndarray:
    """Lengths of error bars; none where unknown, or where a skewed bootstrap lies beside the value."""
    return rounded(np.nan_to_num(differences).clip(min=0))
