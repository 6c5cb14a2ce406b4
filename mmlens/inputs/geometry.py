"""From pixels of the original image to pixels of the image processor's output, and back.

Processors pad, resize and crop. All three are a shift and a scale per axis, so one value holds the whole way.
The arithmetic below repeats that of the Hugging Face processors, rounding included; the tests hold it against
their real output.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mmlens.errors import ConfigError, ImageError
from mmlens.inputs.images import MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class ImageGeometry:
    """How one image was laid into the processor's output.

    ``processed = original * scale + offset`` along each axis, in pixels, measured from the top left corner.

    Attributes:
        size: height and width of the original image, in pixels.
        processed: height and width of the processor's output, in pixels.
        scale: processed pixels per original pixel, vertical and horizontal.
        offset: where the original's top left corner lies in the output, down and right; negative where the
            processor cropped.
    """

    size: tuple[int, int]
    processed: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float]

    def cell_boxes(self, n_rows: int, n_cols: int, cell_size: int) -> Float[np.ndarray, "row col 4"]:
        """Pixels of the original image that each square cell of the output shows.

        Args:
            n_rows: rows of cells, from the top of the output.
            n_cols: columns of cells, from the left.
            cell_size: side of a cell, in pixels of the output.

        Returns:
            left, top, right, bottom, clipped to the image; without area where a cell shows only padding.
        """
        y = self._edges(0, n_rows, cell_size)
        x = self._edges(1, n_cols, cell_size)
        boxes = np.empty((n_rows, n_cols, 4))
        boxes[..., 0], boxes[..., 2] = x[None, :-1], x[None, 1:]
        boxes[..., 1], boxes[..., 3] = y[:-1, None], y[1:, None]
        return boxes

    def _edges(self, axis: int, n: int, cell_size: int) -> Float[np.ndarray, "edge"]:
        edges = (np.arange(n + 1) * cell_size - self.offset[axis]) / self.scale[axis]
        edges = np.where(np.isclose(edges, np.round(edges), rtol=0.0, atol=1e-9), np.round(edges), edges)
        return np.clip(edges, 0.0, float(self.size[axis]))


def unprocessed(processed: tuple[int, int]) -> ImageGeometry:
    """Geometry of pixels that came without their original: the output itself counts as the image."""
    return ImageGeometry(size=processed, processed=processed, scale=(1.0, 1.0), offset=(0.0, 0.0))


def processor_geometry(size: tuple[int, int], image_processor: Any) -> ImageGeometry:
    """What an image processor will do to an image.

    Covers padding to a square, resizing (to a height and width, or of the shortest edge) and centre crop: the
    processors of LLaVA-1.5 and CLIP.

    Args:
        size: height and width of the original image, in pixels.
        image_processor: a Hugging Face image processor.

    Returns:
        The way from the original to ``pixel_values``.

    Raises:
        ImageError: the image is so thin that the processor would blow it up beyond 64 megapixels.
        ConfigError: a resizing or padding mode that is not known here.
    """
    pad, padded = _square_padding(size, image_processor)
    resized = _resized(padded, image_processor)
    if resized[0] * resized[1] > MAX_PIXELS:
        raise ImageError(
            f"an image of {size[1]}×{size[0]} pixels would be resized to {resized[1]}×{resized[0]}, more "
            f"than {MAX_PIXELS // 10**6} megapixels: crop it to a less extreme aspect ratio."
        )
    scale = (resized[0] / padded[0], resized[1] / padded[1])
    crop, processed = _centre_crop(resized, image_processor)
    return ImageGeometry(
        size=size,
        processed=processed,
        scale=scale,
        offset=(pad[0] * scale[0] + crop[0], pad[1] * scale[1] + crop[1]),
    )


def _square_padding(size: tuple[int, int], processor: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    if not getattr(processor, "do_pad", False):
        return (0, 0), size
    if not hasattr(processor, "pad_to_square"):
        raise ConfigError(
            f"{type(processor).__name__} pads images (do_pad=True) in a way that mmlens does not know: set "
            "do_pad=False."
        )
    side = max(size)
    return ((side - size[0]) // 2, (side - size[1]) // 2), (side, side)


def _resized(size: tuple[int, int], processor: Any) -> tuple[int, int]:
    if not getattr(processor, "do_resize", True):
        return size
    target = _present(processor.size)
    height, width = size
    if set(target) == {"height", "width"}:
        return target["height"], target["width"]
    if set(target) == {"shortest_edge"}:
        short = target["shortest_edge"]
        long = int(short * max(size) / min(size))
        return (long, short) if width <= height else (short, long)
    raise ConfigError(
        f"{type(processor).__name__} resizes to {target}; mmlens knows height and width, or shortest_edge "
        "alone."
    )


def _centre_crop(size: tuple[int, int], processor: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    if not getattr(processor, "do_center_crop", False):
        return (0, 0), size
    target = _present(processor.crop_size)
    crop = (target["height"], target["width"])
    # an image smaller than the crop is padded; the two backends put an odd pixel on different sides
    half = math.floor if getattr(processor, "backend", "pil") == "torchvision" else math.ceil
    offset = [half((c - s) / 2) if c > s else -((s - c) // 2) for s, c in zip(size, crop, strict=True)]
    return (offset[0], offset[1]), crop


def _present(size: Any) -> dict[str, int]:
    keys = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width", "max_pixels")
    read = size.get if isinstance(size, Mapping) else lambda key: getattr(size, key, None)
    return {key: int(value) for key in keys if (value := read(key)) is not None}
