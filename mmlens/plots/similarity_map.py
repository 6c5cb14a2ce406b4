"""Heatmap of how alike head maps are within and between groups of samples."""

import numpy as np
import plotly.graph_objects as go

from mmlens.plots.theme import DIVERGING, as_text, colour_bar, number, rounded, symmetric_limit, titled
from mmlens.result import MapSimilarityResult


def similarity_map(
    result: MapSimilarityResult, *, title: str | None = None, limit: float | None = None
) -> go.Figure:
    """Mean cosine of every two groups, its own on the diagonal; intervals, gaps and p-values on hovering.

    Args:
        result: what to draw.
        title: heading; a plain one by default.
        limit: end of the colour scale, to make several figures comparable; by default the largest cosine.

    Returns:
        The figure; cosines without unit, red = alike, blue = opposite.
    """
    cosine = result.data["cosine"].values
    bound = limit or symmetric_limit(cosine)
    names, places = [as_text(name, 24) for name in result.groups], list(range(len(result.groups)))
    figure = go.Figure(
        go.Heatmap(
            x=places,
            y=places,
            z=rounded(cosine),
            customdata=_hover(result),
            zmin=-bound,
            zmax=bound,
            colorscale=[list(stop) for stop in DIVERGING],
            colorbar=colour_bar("cosine"),
            xgap=1,
            ygap=1,
            texttemplate="%{z:.2f}",
            hovertemplate="%{customdata}<extra></extra>",
            name="cosine",
        )
    )
    plain = {"showgrid": False, "showline": False, "ticks": "", "tickvals": places, "ticktext": names}
    figure.update_xaxes(range=[-0.5, len(names) - 0.5], **plain)
    figure.update_yaxes(range=[len(names) - 0.5, -0.5], **plain)
    counts = ", ".join(str(count) for count in np.unique(result.data["n"].values).tolist())
    subtitle = (
        f"Mean cosine between the maps of two different samples ({result.data.attrs['score']}); n = {counts} "
        "samples per group. 1 = the same map up to its scale. Diagonal: within a group."
    )
    height = min(900, 260 + 44 * len(names))
    return titled(figure, title or "How alike head maps are, within and between groups", subtitle, height)


def _hover(result: MapSimilarityResult) -> list[list[str]]:
    """What each cell says when pointed at."""
    groups, cosine = result.groups, result.data["cosine"].values
    ends = result.data["cosine_interval"].values
    text = [
        [
            f"{as_text(a if a == b else f'{a}, {b}')}<br><b>{number(cosine[i, j], '.3f')}</b> "
            f"[{number(ends[i, j, 0], '.3f')}, {number(ends[i, j, 1], '.3f')}]"
            for j, b in enumerate(groups)
        ]
        for i, a in enumerate(groups)
    ]
    for row in result.summary().to_dict("records"):
        i, j = groups.index(row["first"]), groups.index(row["second"])
        ends_of_gap = f"[{number(row['lower'], '.3f')}, {number(row['upper'], '.3f')}]"
        gap = f"<br>gap {number(row['gap'], '+.3f')} {ends_of_gap}, p = {row['p_value']:.2g}"
        text[i][j] += gap
        text[j][i] += gap
    return text
