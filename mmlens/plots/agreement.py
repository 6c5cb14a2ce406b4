"""Attribution against another score of the same heads: does the cheap score find the heads that matter?"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mmlens.errors import ResultError
from mmlens.plots.theme import as_text, number, rounded, titled, with_unit
from mmlens.result import AttributionResult, HeadScoreResult


def agreement(result: AttributionResult, score: HeadScoreResult, *, title: str | None = None) -> go.Figure:
    """One point per head: its attribution against its score by another method, both as means over samples.

    Args:
        result: attribution of the heads.
        score: another score of the same heads.
        title: heading; a plain one by default.

    Returns:
        The figure; Spearman's rank correlation stands in the subtitle.

    Raises:
        ResultError: the two have different heads.
    """
    theta, other = result.theta.mean("sample"), score.score.mean("sample")
    if theta.shape != other.shape:
        raise ResultError(
            f"heads differ: {theta.shape} attributions, {other.shape} scores. Use the same model."
        )
    layers, heads = (axis.ravel() for axis in np.meshgrid(theta["layer"], theta["head"], indexing="ij"))
    flat = pd.DataFrame({"score": other.values.ravel(), "theta": theta.values.ravel()})
    rank = float(flat.rank().corr().iloc[0, 1])
    method = score.data.attrs["method"]
    figure = go.Figure(
        go.Scatter(
            x=rounded(flat["score"].to_numpy()),
            y=rounded(flat["theta"].to_numpy()),
            mode="markers",
            marker={
                "size": 8,
                "color": layers,
                "colorscale": "Viridis",
                "opacity": 0.8,
                "colorbar": {"title": {"text": "layer"}, "thickness": 12, "outlinewidth": 0},
            },
            customdata=np.stack([layers, heads], axis=-1),
            hovertemplate="layer %{customdata[0]}, head %{customdata[1]}<br>%{x:.3g}, %{y:.3g}"
            "<extra></extra>",
        )
    )
    figure.update_xaxes(title_text=as_text(with_unit(method, score.data.attrs["unit"])))
    figure.update_yaxes(title_text=as_text(with_unit("attribution", result.data.attrs["unit"])))
    subtitle = (
        f"Means over n = {result.n} samples, one point per head; Spearman's rank correlation {number(rank)}. "
        f"Score: {score.data.attrs['sign']}."
    )
    return titled(figure, title or f"Attribution and {method}", subtitle, 420)
