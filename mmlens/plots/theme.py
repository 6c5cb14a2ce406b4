"""The look of every figure, in one place: fonts, margins, colours that colour-blind readers can tell apart.

Figures carry text that others wrote (questions, tokens, names of methods). Plotly reads a little HTML in
text, so all of it goes through ``as_text``.
"""

import html
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

INK = "#1f2933"
MUTED = "#616e7c"
GRID = "#e4e7eb"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's palette, strongest contrasts first."""
CHANCE = "#7b8794"
"""Colour of random controls and other references."""

DIVERGING = (
    (0.0, "#134b8a"),
    (0.25, "#6aa3d5"),
    (0.5, "#f7f7f5"),
    (0.75, "#e88a5d"),
    (1.0, "#a3200d"),
)
"""Blue (negative) through white (zero) to red (positive); its lightness is symmetric."""


def overlay_scale(opacity: float) -> list[list[Any]]:
    """The diverging scale for drawing over an image: zero is clear, the ends have ``opacity`` (0 to 1)."""
    stops = []
    for at in np.linspace(0, 1, 21).tolist():
        red, green, blue = (19, 75, 138) if at < 0.5 else (190, 30, 10)
        stops.append([at, f"rgba({red},{green},{blue},{opacity * abs(2 * at - 1) ** 0.7:.3f})"])
    return stops


def as_text(text: object, width: int | None = None) -> str:
    """Text that plotly shows literally, on one line, shortened to ``width`` characters."""
    plain = " ".join(str(text).split())
    if width is not None:
        plain = plain if len(plain) <= width else plain[: width - 1] + "…"
    return html.escape(plain)


def titled(figure: go.Figure, title: str, subtitle: str = "", height: int = 420) -> go.Figure:
    """The figure with the common layout, its title at the left and what it shows below in grey.

    Both texts are also kept, unescaped, in ``layout.meta``, for pages that set them outside the figure.

    Args:
        figure: changed in place and returned.
        title: plain text, escaped here.
        subtitle: plain text: metric, unit, n; escaped here and broken into lines of 100 characters.
        height: of the whole figure, in pixels.
    """
    lines = textwrap.wrap(" ".join(subtitle.split()), 100)
    small = "".join(
        f"<br><span style='font-size:12px;color:{MUTED}'>{as_text(line)}</span>" for line in lines
    )
    figure.update_layout(
        template=template(),
        height=height,
        meta={"title": " ".join(title.split()), "subtitle": " ".join(subtitle.split())},
        title_text=f"<b>{as_text(title)}</b>{small}",
        margin_t=64 + 16 * len(lines),
    )
    return figure


def template() -> go.layout.Template:
    """Fonts, margins, axes and colours shared by all figures."""
    axis: dict[str, Any] = {
        "showgrid": True,
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": MUTED,
        "showline": True,
        "ticks": "outside",
        "tickcolor": MUTED,
        "ticklen": 4,
        "automargin": True,
        "title": {"font": {"size": 13}, "standoff": 8},
    }
    return go.layout.Template(
        layout=go.Layout(
            font={"family": FONT, "size": 13, "color": INK},
            title={
                "x": 0,
                "xref": "paper",
                "xanchor": "left",
                "y": 1,
                "yref": "container",
                "yanchor": "top",
                "pad": {"t": 20},  # room for the first line, which "top" alone lets stick out of the figure
                "font": {"size": 16},
            },
            colorway=list(LINES),
            paper_bgcolor="white",
            plot_bgcolor="white",
            margin={"l": 56, "r": 16, "t": 64, "b": 48},
            xaxis=axis,
            yaxis=axis,
            hoverlabel={"font": {"family": FONT, "size": 12}, "bgcolor": "white", "bordercolor": MUTED},
            legend={
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "yref": "container",
                "y": 0,
                "yanchor": "bottom",
                "font": {"size": 12},
            },
        )
    )


def rounded(values: np.ndarray, digits: int = 4) -> np.ndarray:
    """Values with ``digits`` significant digits: figures stay small and hover texts short."""
    values = np.asarray(values, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        power = np.where(values == 0, 0, np.floor(np.log10(np.abs(values))))
    scale = 10.0 ** (digits - 1 - np.nan_to_num(power, posinf=0, neginf=0))
    return np.round(values * scale) / scale


def number(value: float, spec: str = ".2f") -> str:
    """A number as text, with a real minus sign."""
    return format(value, spec).replace("-", "−")


def with_unit(name: object, unit: object) -> str:
    """``name (unit)``, not escaped; a share has no unit to show, and no name says its unit twice."""
    known = str(unit) in ("", "1") or str(name).split()[-1:] == [str(unit)]
    return str(name) if known else f"{name} ({unit})"


def unit_alone(unit: object) -> str:
    """A unit as the title of a colour bar."""
    return "share" if str(unit) == "1" else str(unit)


def sentence(text: object) -> str:
    """Text with a capital first letter."""
    plain = str(text)
    return plain[:1].upper() + plain[1:]


def symmetric_limit(values: np.ndarray) -> float:
    """End of a scale that is centred at 0 and holds every finite value."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size and finite.max() > 0 else 1.0


def colour_bar(title: str, **options: Any) -> dict[str, Any]:
    """A thin colour bar with its unit on top."""
    return {
        "title": {"text": as_text(title), "side": "top", "font": {"size": 12}},
        "thickness": 12,
        "outlinewidth": 0,
        "tickfont": {"size": 11},
    } | options


def sample_names(labels: Sequence[object], questions: Sequence[object] | None, width: int = 44) -> list[str]:
    """Short, escaped names of samples for menus: label and question."""
    if questions is None:
        return [as_text(label, width) for label in labels]
    return [as_text(f"{a}: {b}" if b else a, width) for a, b in zip(labels, questions, strict=True)]
