"""Images, cells and tokens as variables of a result, so that it can be drawn without model or data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Num, UInt8

from mmlens.errors import ResultError

MAX_SIDE = 336
"""Longest side of a stored thumbnail, in pixels."""


def image_variables(
    *,
    images: Sequence[Any],
    boxes: Sequence[Num[np.ndarray, "_ _ 4"] | None] | None = None,
    weights: Sequence[Num[np.ndarray, "_ _"] | None] | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    max_side: int = MAX_SIDE,
) -> dict[str, xr.DataArray]:
    """Variables ``image``, ``image_height``, ``image_width`` and, where given, ``cell_box``, ``cell_weight``.

    Args:
        images: one per sample: uint8 array [height, width, 3], PIL image, or None for a sample without.
        boxes: one per sample: left, top, right, bottom of every cell in pixels of the original image.
        weights: one per sample: value of every cell, in the metric's unit. Needs ``boxes``.
        sizes: height and width of each original, in pixels, if ``images`` are already thumbnails.
        max_side: longest side of the stored thumbnails, in pixels.

    Returns:
        Arrays to ``update`` a dataset with; samples with smaller images or fewer cells are padded (0 and
        NaN).

    Raises:
        ResultError: the sequences differ in length, an image is not RGB uint8, or weights come without boxes.
    """
    for name, given in (("boxes", boxes), ("weights", weights), ("sizes", sizes)):
        if given is not None and len(given) != len(images):
            raise ResultError(f"{len(images)} images but {len(given)} {name}; give one per sample.")
    if weights is not None and boxes is None:
        raise ResultError("weights need boxes, which say where each cell lies. Give both.")
    originals = [_rgb(image) for image in images]
    thumbnails = [_thumbnail(image, max_side) for image in originals]
    padded = np.zeros((len(images), *_largest(thumbnails, 2), 3), np.uint8)
    for target, thumbnail in zip(padded, thumbnails, strict=True):
        target[: thumbnail.shape[0], : thumbnail.shape[1]] = thumbnail
    found = {
        "image": xr.DataArray(padded, dims=("sample", "pixel_row", "pixel_col", "channel")),
        "image_height": xr.DataArray([image.shape[0] for image in thumbnails], dims="sample"),
        "image_width": xr.DataArray([image.shape[1] for image in thumbnails], dims="sample"),
    }
    if boxes is not None:
        extents = sizes if sizes is not None else [(image.shape[0], image.shape[1]) for image in originals]
        fractions = [_as_fraction(box, extent) for box, extent in zip(boxes, extents, strict=True)]
        found["cell_box"] = xr.DataArray(_padded(fractions, 3), dims=("sample", "row", "col", "side"))
    if weights is not None:
        cells = [np.zeros((0, 0)) if weight is None else np.asarray(weight, np.float64) for weight in weights]
        found["cell_weight"] = xr.DataArray(_padded(cells, 2), dims=("sample", "row", "col"))
    return found


def token_variables(
    *, tokens: Sequence[Sequence[str]], roles: Sequence[Sequence[str]]
) -> dict[str, xr.DataArray]:
    """Variables ``token`` and ``role`` [sample, pos], padded on the right with role ``pad``.

    Args:
        tokens: token strings of every sample.
        roles: role of each token.

    Raises:
        ResultError: tokens and roles differ in length.
    """
    if [len(one) for one in tokens] != [len(one) for one in roles]:
        raise ResultError("every token needs one role: tokens and roles differ in length.")
    length = max((len(one) for one in tokens), default=0)
    texts = np.full((len(tokens), length), "", dtype=object)
    names = np.full((len(tokens), length), "pad", dtype=object)
    for i, (row, kinds) in enumerate(zip(tokens, roles, strict=True)):
        texts[i, : len(row)] = [_encodable(token) for token in row]
        names[i, : len(row)] = list(kinds)
    return {
        "token": xr.DataArray(texts, dims=("sample", "pos")),
        "role": xr.DataArray(names, dims=("sample", "pos")),
    }


def _encodable(text: str) -> str:
    """Text without the lone halves of characters that byte-level tokens can leave behind."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _rgb(image: Any) -> UInt8[np.ndarray, "height width 3"]:
    """An image as an RGB array; [0, 0, 3] for none."""
    if image is None:
        return np.zeros((0, 0, 3), np.uint8)
    array = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ResultError(
            f"an image must be uint8 [height, width, 3], got {array.dtype} {array.shape}. Convert it to RGB "
            "first."
        )
    return array


def _thumbnail(image: UInt8[np.ndarray, "height width 3"], max_side: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image at most ``max_side`` pixels long."""
    longest = max(image.shape[:2])
    if longest <= max_side:
        return image
    from PIL import Image

    height, width = (max(1, round(side * max_side / longest)) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def _as_fraction(box: np.ndarray | None, extent: tuple[int, int]) -> Float[np.ndarray, "row col 4"]:
    """Pixel boxes as fractions of width and height."""
    if box is None:
        return np.zeros((0, 0, 4))
    height, width = extent
    return np.asarray(box, np.float64) / np.array([width, height, width, height], np.float64)


def _largest(arrays: Sequence[np.ndarray], axes: int) -> tuple[int, ...]:
    """Largest extent along each of the leading axes."""
    return tuple(max((array.shape[axis] for array in arrays), default=0) for axis in range(axes))


def _padded(arrays: Sequence[np.ndarray], axes: int) -> np.ndarray:
    """Stacks arrays of different extents, with NaN where one has no value."""
    stacked = np.full((len(arrays), *_largest(arrays, axes)), np.nan)
    for target, array in zip(stacked, arrays, strict=True):
        target[tuple(slice(0, extent) for extent in array.shape)] = array
    return stacked
