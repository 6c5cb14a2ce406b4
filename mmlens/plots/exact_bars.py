"""Exact values of a planted model's heads, per question family."""

import numpy as np
import plotly.graph_objects as go

from mmlens.plots.theme import INK, LINES, as_text, rounded, titled, with_unit
from mmlens.result import PlantedTruth
from mmlens.result.planted_truth import Index
from mmlens.result.summary import mean_interval

INDEX_NAMES = {
    "shapley": "Shapley value",
    "banzhaf": "Banzhaf value",
    "removal": "effect of removal",
    "addition": "effect alone",
}
"""Kind of exact value → its name in figures."""
_PATTERNS = {"carrier": "", "decoy": "/"}


def exact_bars(
    result: PlantedTruth,
    *,
    baseline: str | None = None,
    index: Index = "shapley",
    title: str | None = None,
) -> go.Figure:
    """One bar per player and question family: mean exact value over samples, decoys hatched.

    Args:
        result: what to draw.
        baseline: what closed heads read; None for the first there is.
        index: kind of exact value, see ``PlantedTruth.player_values``.
        title: heading; a plain one by default.

    Returns:
        The figure, in the metric's unit; error bars are 95 % t intervals where there are several samples.
    """
    baseline = result.baselines[0] if baseline is None else baseline
    values = np.stack(
        [result.player_values(name, baseline=baseline, index=index).values for name in result.families]
    )  # [family, sample, player]
    figure = go.Figure()
    players = [(f"L{layer}H{head}", part) for layer, head, part in result.heads if part in _PATTERNS]
    for i, (name, part) in enumerate(players):
        _add_head(figure, values[..., i], f"{name} ({part})", LINES[i % len(LINES)], _PATTERNS[part])
    families = [as_text(name) for name in result.families]
    figure.add_hline(y=0, line={"color": INK, "width": 1})
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_xaxes(tickvals=list(range(len(families))), ticktext=families, showgrid=False)
    attrs = result.data.attrs
    figure.update_yaxes(title_text=as_text(with_unit(f"exact {INDEX_NAMES[index]}", attrs["unit"])))
    subtitle = (
        f"Exact {INDEX_NAMES[index]} in {attrs['metric']} of each planted head that may read the image, from all "
        f"{result.data.sizes['subset']} subsets; n = {result.n} samples per family; closed heads read "
        f"{baseline}."
        + (" Error bars: 95 % t interval of the mean." if result.n > 1 else "")
        + " All other heads are exactly 0."
    )
    return titled(figure, title or "What each planted head is worth", subtitle, 420)


def _add_head(figure: go.Figure, values: np.ndarray, label: str, colour: str, pattern: str) -> None:
    """The bars of one head; values [family, sample]."""
    means = values.mean(axis=1)
    error = None
    if values.shape[1] > 1:
        low, high = mean_interval(values, axis=1)
        error = {"type": "data", "array": rounded((high - low) / 2), "thickness": 1.2, "width": 3}
    figure.add_trace(
        go.Bar(
            x=list(range(len(means))),
            y=rounded(means),
            name=label,
            error_y=error,
            marker={"color": colour, "opacity": 0.9, "pattern": {"shape": pattern}},
            hovertemplate="%{y:.4g}<extra>" + label + "</extra>",
        )
    )
