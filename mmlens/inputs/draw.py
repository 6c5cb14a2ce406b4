"""Draws token groups or values per image token over the image, with PIL alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont

from mmlens.errors import NonFiniteError, SelectorError, ShapeError
from mmlens.inputs.grid import ImageGrid
from mmlens.inputs.token_map import TokenMap

_SIDE = 480  # longest side of the drawing, in pixels
_LEGEND = 22  # height of the legend, in pixels

# Okabe and Ito's colours: distinct for colour-blind readers, too
_PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_COLD, _NEUTRAL, _HOT = (33, 102, 172), (247, 247, 247), (178, 24, 43)


def draw_token_map(
    token_map: TokenMap, what: Any, *, image: int = 0, opacity: int | float = 0.55
) -> Image.Image:
    """Draws over one image of a sample.

    Args:
        token_map: the sample's labels.
        what: a selector; a list of names, each in its colour; or float values, ``[row, col]`` or ``[pos]``:
            red above zero, blue below, white at zero, up to the largest absolute value; NaN is left clear.
        image: which grid in ``token_map.images``.
        opacity: of the colours, 0 to 1.

    Returns:
        An RGB image with a legend below.

    Raises:
        SelectorError: unknown names, or no such image.
        ShapeError: values of another shape, or a map without thumbnails.
        NonFiniteError: infinite values.
    """
    if not 0 <= image < len(token_map.images):
        raise SelectorError(f"no image {image}: this sample has {len(token_map.images)}, counted from 0.")
    grid = token_map.images[image]
    if grid.image_index >= len(token_map.thumbnails):
        raise ShapeError(
            "this token map holds no thumbnails, so there is nothing to draw on: use prepare() to build it."
        )
    picture = _enlarged(token_map.thumbnails[grid.image_index])
    values = _values(what, token_map.n_pos, grid)
    if values is not None:
        shown = ~np.isnan(values)
        bound = float(np.abs(values[shown]).max()) if shown.any() else 0.0
        picture = _filled(picture, grid, _heat(values, bound), shown, opacity)
        return _with_legend(picture, _heat_legend(values, bound))
    named = isinstance(what, (list, tuple)) and all(isinstance(name, str) for name in what)
    groups = list(what) if named else [what]
    legend = []
    for index, group in enumerate(groups):
        colour = _PALETTE[index % len(_PALETTE)]
        shown = token_map.mask(group)[grid.positions]
        colours = np.broadcast_to(np.array(colour, dtype=float), (*grid.shape, 3))
        picture = _filled(picture, grid, colours, shown, opacity)
        legend.append((f"{group if isinstance(group, str) else 'selection'} ({int(shown.sum())})", colour))
    return _with_legend(picture, legend)


def _enlarged(thumbnail: np.ndarray) -> Image.Image:
    picture = Image.fromarray(thumbnail)
    factor = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.BICUBIC)


def _values(what: Any, n_pos: int, grid: ImageGrid) -> Float[np.ndarray, "row col"] | None:
    """Values per cell, or None if ``what`` selects positions instead."""
    array = (
        what.detach().float().cpu().numpy()
        if isinstance(what, torch.Tensor) and what.is_floating_point()
        else what
    )
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
        return None
    if array.shape == (n_pos,):
        array = array[grid.positions]
    if array.shape != grid.shape:
        raise ShapeError(
            f"values to draw must be [{n_pos}] (one per position) or {list(grid.shape)} (one per cell); got "
            f"{list(array.shape)}."
        )
    if np.isinf(array).any():
        raise NonFiniteError("values to draw contain infinity: mark cells without a value with NaN.")
    return array.astype(np.float64)


def _heat(values: Float[np.ndarray, "row col"], bound: float) -> Float[np.ndarray, "row col 3"]:
    level = np.nan_to_num(values / bound if bound > 0 else values)[..., None]
    cold, neutral, hot = (np.array(colour, dtype=float) for colour in (_COLD, _NEUTRAL, _HOT))
    return neutral + level.clip(0, 1) * (hot - neutral) + (-level).clip(0, 1) * (cold - neutral)


def _heat_legend(
    values: Float[np.ndarray, "row col"], bound: float
) -> list[tuple[str, tuple[int, int, int]]]:
    ends = [(-bound, _COLD), (0.0, _NEUTRAL), (bound, _HOT)]
    needed = (bool((values < 0).any()), True, bool((values > 0).any()))
    return [(f"{value:.3g}", colour) for (value, colour), keep in zip(ends, needed, strict=True) if keep]


def _filled(
    picture: Image.Image,
    grid: ImageGrid,
    colours: Float[np.ndarray, "row col 3"],
    shown: Bool[np.ndarray, "row col"],
    opacity: int | float,
) -> Image.Image:
    overlay = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(overlay)
    height, width = grid.size
    scale = np.array([picture.width / width, picture.height / height] * 2)
    alpha = round(255 * min(max(opacity, 0.0), 1.0))
    for row, col in np.argwhere(shown):
        left, top, right, bottom = grid.boxes[row, col] * scale
        if right - left < 1 or bottom - top < 1:
            continue  # padding, or too thin to see
        red, green, blue = (int(channel) for channel in colours[row, col])
        pen.rectangle((left, top, right - 1, bottom - 1), fill=(red, green, blue, alpha))
    return Image.alpha_composite(picture.convert("RGBA"), overlay).convert("RGB")


def _with_legend(picture: Image.Image, entries: Sequence[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    font = ImageFont.load_default()
    canvas = Image.new("RGB", (picture.width, picture.height + _LEGEND * len(entries)), (255, 255, 255))
    canvas.paste(picture, (0, 0))
    pen = ImageDraw.Draw(canvas)
    for index, (text, colour) in enumerate(entries):
        top = picture.height + index * _LEGEND
        pen.rectangle((4, top + 5, 16, top + 17), fill=colour, outline=(90, 90, 90))
        pen.text((22, top + 4), text.encode("ascii", "replace").decode(), fill=(20, 20, 20), font=font)
    return canvas
