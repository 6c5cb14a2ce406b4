"""The eight drawn shapes as exact pixel masks, drawn by formula so that no graphics library can move a pixel."""

from functools import cache

import numpy as np
from jaxtyping import Bool, Float


@cache
def glyph(name: str, size: int) -> Bool[np.ndarray, "size size"]:
    """The pixels of one shape in a square of ``size`` pixels; read-only and shared.

    Args:
        name: One of the scene classes but the digit.
        size: Side of the square, in pixels.

    Returns:
        True where the shape is, rows downwards.
    """
    line = (2 * np.arange(size) + 1) / size - 1
    x, y = np.meshgrid(line, line)
    mask = _SHAPES[name](x, y)
    mask.flags.writeable = False
    return mask


Grid = Float[np.ndarray, "size size"]
Mask = Bool[np.ndarray, "size size"]


def _circle(x: Grid, y: Grid) -> Mask:
    return x**2 + y**2 <= 1


def _square(x: Grid, y: Grid) -> Mask:
    return np.maximum(abs(x), abs(y)) <= 1


def _triangle(x: Grid, y: Grid) -> Mask:
    return abs(x) <= (y + 1) / 2


def _star(x: Grid, y: Grid) -> Mask:
    inner, half = 0.42, np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + half) % (2 * half) - half)  # from the nearest point of the star
    # the edge is the straight line from (angle 0, radius 1) to (angle half, radius inner)
    edge = inner * np.sin(half) / (np.sin(half - angle) * inner + np.sin(angle))
    return np.hypot(x, y * 0.95 - 0.05) <= np.where(edge > 0, edge, 0)


def _cross(x: Grid, y: Grid) -> Mask:
    return np.minimum(abs(x), abs(y)) <= 0.3


def _ring(x: Grid, y: Grid) -> Mask:
    radius = np.hypot(x, y)
    return (radius <= 1) & (radius >= 0.58)


def _heart(x: Grid, y: Grid) -> Mask:
    u, v = 1.15 * x, 0.15 - 1.12 * y
    return (u**2 + v**2 - 1) ** 3 - u**2 * v**3 <= 0


def _moon(x: Grid, y: Grid) -> Mask:
    return (x**2 + y**2 <= 1) & ((x - 0.55) ** 2 + y**2 >= 0.85**2)


_SHAPES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "moon": _moon,
}
