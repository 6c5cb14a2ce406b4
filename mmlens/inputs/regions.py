"""Boxes and masks over an image, and which image cells they cover.

All pixel coordinates are those of the original image after EXIF rotation, as ``load_image`` returns it: x to
the right, y down, right and bottom edges exclusive. What the image processor crops away belongs to no cell.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped

from mmlens.errors import RegionError

_TOUCH = 1e-6  # of a cell's area: less is rounding of the cell's edges, not overlap


Pixels = int | float | np.integer | np.floating
"""A length or coordinate in pixels."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle in an image.

    Attributes:
        left: first column of pixels.
        top: first row of pixels.
        right: column after the last.
        bottom: row after the last.
        image: which image of the prompt, from 0.
    """

    left: Pixels
    top: Pixels
    right: Pixels
    bottom: Pixels
    image: int | np.integer = 0

    def __post_init__(self) -> None:
        """Rejects boxes without area or with negative or non-finite edges."""
        for name in ("left", "top", "right", "bottom"):
            object.__setattr__(self, name, float(getattr(self, name)))
        edges = (self.left, self.top, self.right, self.bottom)
        if not all(math.isfinite(edge) for edge in edges):
            raise RegionError(f"{self} has an edge that is no finite number.")
        if self.left >= self.right or self.top >= self.bottom:
            raise RegionError(
                f"{self} covers nothing: expected left < right and top < bottom. A box given as x, y, "
                "width, height is Box(left=x, top=y, right=x + width, bottom=y + height)."
            )
        if self.left < 0 or self.top < 0 or self.image < 0:
            raise RegionError(f"{self} starts outside the image: left, top and image count from 0.")


@dataclass(frozen=True, kw_only=True, eq=False)
class RegionMask:
    """Any set of pixels of an image.

    Attributes:
        mask: True where the region is; as many rows and columns as the image has pixels.
        image: which image of the prompt, from 0.
    """

    mask: Shaped[np.ndarray, "..."]  # checked below, so that a wrong one is a RegionError
    image: int | np.integer = 0

    def __post_init__(self) -> None:
        """Rejects anything but a two-dimensional, non-empty array of booleans."""
        mask = self.mask
        if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.dtype != np.bool_:
            given = (
                f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, np.ndarray) else type(mask).__name__
            )
            raise RegionError(
                f"a region mask must be a bool array [height, width], not {given}: give mask > 0."
            )
        if not mask.any():
            raise RegionError("the region mask is False everywhere: it covers nothing.")
        if self.image < 0:
            raise RegionError(f"image={self.image}: images count from 0.")


Region = Box | RegionMask
"""A box or a mask."""


def check_region(region: Region, sizes: Sequence[tuple[int, int]], name: str) -> None:
    """Raises unless a region lies inside the image that it names.

    Args:
        region: box or mask.
        sizes: height and width of each image of the sample, in pixels.
        name: how the message calls the region.

    Raises:
        RegionError: no such image; a box that sticks out; a mask of another size than the image.
    """
    if region.image >= len(sizes):
        raise RegionError(
            f"{name} lies in image {region.image}, but the sample has {len(sizes)} image(s), from 0."
        )
    height, width = sizes[int(region.image)]
    upright = f"image {region.image} is {width}×{height} pixels (width × height, upright after EXIF rotation)"
    if isinstance(region, Box):
        if region.right > width or region.bottom > height:
            raise RegionError(f"{name}, {region}, sticks out of the image: {upright}.")
    elif region.mask.shape != (height, width):
        rows, cols = region.mask.shape
        raise RegionError(f"{name} is a mask of {cols}×{rows}, but {upright}.")


def coverage(region: Region, boxes: Float[np.ndarray, "*grid 4"]) -> Float[np.ndarray, "*grid"]:
    """Which fraction of each pixel box a region covers.

    Args:
        region: box or mask, in the same image as ``boxes``.
        boxes: left, top, right, bottom of each box, in pixels.

    Returns:
        Exact fractions of the boxes' areas, 0 to 1; 0 for boxes without area. Box edges need not be whole
        pixels: a mask pixel that a box cuts counts by the part inside.
    """
    left, top, right, bottom = np.moveaxis(boxes, -1, 0)
    area = (right - left) * (bottom - top)
    if isinstance(region, Box):
        width = np.minimum(right, region.right) - np.maximum(left, region.left)
        height = np.minimum(bottom, region.bottom) - np.maximum(top, region.top)
        covered = np.clip(width, 0, None) * np.clip(height, 0, None)
    else:
        table = np.pad(region.mask, ((1, 0), (1, 0))).astype(np.float64).cumsum(0).cumsum(1)
        covered = (
            _area_before(table, bottom, right)
            - _area_before(table, top, right)
            - _area_before(table, bottom, left)
            + _area_before(table, top, left)
        )
    return np.where(area > 0, covered / np.where(area > 0, area, 1.0), 0.0).clip(0.0, 1.0)


def _area_before(
    table: Float[np.ndarray, "height width"], y: Float[np.ndarray, "*grid"], x: Float[np.ndarray, "*grid"]
) -> Float[np.ndarray, "*grid"]:
    # the summed-area table is bilinear inside a pixel, so this interpolation is exact
    row = np.clip(np.floor(y).astype(int), 0, table.shape[0] - 2)
    col = np.clip(np.floor(x).astype(int), 0, table.shape[1] - 2)
    dy, dx = y - row, x - col
    upper = table[row, col] * (1 - dx) + table[row, col + 1] * dx
    lower = table[row + 1, col] * (1 - dx) + table[row + 1, col + 1] * dx
    return upper * (1 - dy) + lower * dy


def covered_cells(
    region: Region, boxes: Float[np.ndarray, "*grid 4"], min_coverage: int | float = 0.0
) -> Bool[np.ndarray, "*grid"]:
    """Which cells belong to a region.

    Args:
        region: box or mask, in the same image as ``boxes``.
        boxes: the pixel box of each cell.
        min_coverage: a cell belongs to the region if at least this fraction of it is covered; with 0
            (default) any overlap is enough.

    Returns:
        True for the cells of the region.

    Raises:
        RegionError: ``min_coverage`` is not between 0 and 1.
    """
    if not 0.0 <= min_coverage <= 1.0:
        raise RegionError(
            f"min_coverage={min_coverage} must lie between 0 (any overlap) and 1 (fully covered)."
        )
    fraction = coverage(region, boxes)
    return fraction > _TOUCH if min_coverage == 0.0 else fraction >= min_coverage - _TOUCH
