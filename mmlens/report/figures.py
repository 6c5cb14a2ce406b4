"""A plotly figure as data inside a page: JSON that cannot end its script element."""

from dataclasses import dataclass

import plotly.graph_objects as go

_ESCAPES = {
    code: f"\\u{code:04x}" for code in (0x3C, 0x3E, 0x26, 0x2028, 0x2029)
}  # < > & and line separators


@dataclass(frozen=True, kw_only=True)
class EmbeddedFigure:
    """One figure of a page.

    Attributes:
        name: id of its element.
        title: heading above it, plain text.
        caption: text below it, plain text: metric, unit, n.
        height: in pixels.
        json: data and layout; safe inside a script element.
    """

    name: str
    title: str
    caption: str
    height: int
    json: str


def embed(figure: go.Figure, name: str) -> EmbeddedFigure:
    """A figure made by ``mmlens.plots``, its title moved out so that a page can wrap it on small screens.

    Args:
        figure: not changed.
        name: id of its element.
    """
    layout = figure.to_dict()["layout"]
    bare = go.Figure(figure)
    top = 56 if layout.get("updatemenus") else 12
    height = int(layout["height"] - (layout["margin"]["t"] - top))
    bare.update_layout(title_text="", height=height, margin_t=top)
    return EmbeddedFigure(
        name=name,
        title=str(layout["meta"]["title"]),
        caption=str(layout["meta"]["subtitle"]),
        height=height,
        json=script_safe(bare.to_json() or "{}"),
    )


def script_safe(json_text: str) -> str:
    """The same JSON, with the characters that mean something to an HTML parser written as escapes."""
    return json_text.translate(_ESCAPES)
