"""Interactions of pairs of heads, largest first."""

import numpy as np
import plotly.graph_objects as go

from mmlens.plots.theme import INK, LINES, as_text, rounded, titled, unit_alone, with_unit
from mmlens.result import InteractionResult


def interaction_bars(
    result: InteractionResult, *, sample: int | str | None = None, k: int = 30, title: str | None = None
) -> go.Figure:
    """One bar per pair with its interval; the largest ``k``, whatever their sign.

    Args:
        result: what to draw.
        sample: position or label; None for the mean over samples.
        k: how many pairs at most.
        title: heading; a plain one by default.

    Returns:
        The figure, in the metric's unit; below 0 (blue) = either head can stand in for the other.
    """
    table = result.top(k, sample)
    names = [
        f"L{int(a)}H{int(b)}, L{int(c)}H{int(d)}"
        for a, b, c, d in table[["first_layer", "first_head", "second_layer", "second_head"]].to_numpy()
    ]
    values, lower, upper = (table[name].to_numpy() for name in ("interaction", "lower", "upper"))
    unit = result.data.attrs["unit"]
    figure = go.Figure(
        go.Bar(
            x=list(range(len(names))),
            y=rounded(values),
            marker={"color": [LINES[0] if value < 0 else LINES[1] for value in values], "opacity": 0.85},
            customdata=[as_text(name) for name in names],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": rounded(np.nan_to_num(upper - values).clip(min=0)),
                "arrayminus": rounded(np.nan_to_num(values - lower).clip(min=0)),
                "thickness": 1.2,
                "width": 3,
            },
            hovertemplate="%{customdata}: %{y:.3g} " + as_text(unit_alone(unit)) + "<extra></extra>",
            showlegend=False,
        )
    )
    figure.add_hline(y=0, line={"color": INK, "width": 1})
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names, showgrid=False)
    figure.update_yaxes(title_text=as_text(with_unit("interaction", unit)))
    attrs, chosen = result.data.attrs, f"n = {result.n}" if sample is None else f"sample {sample}"
    subtitle = (
        f"{attrs['metric']}, {chosen}; ablated heads read {attrs['baseline']}. Negative: either head can stand in for "
        f"the other; positive: they need each other. Error bars: {result.summary(sample).attrs['interval']}."
    )
    return titled(figure, title or "Do these heads stand in for each other?", subtitle, 420)
