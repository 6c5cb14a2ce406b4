"""Turns a list of objects into pixels: background, objects, an optional box, then noise over everything."""

import random
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mmlens.datasets.scenes.glyphs import glyph
from mmlens.datasets.scenes.values import LINE, PALETTE, SIZE, Rectangle, SceneObject

BOX_COLOUR = (0, 255, 255)
NOISE = 10
"""Largest change that noise makes to a channel, in grey levels."""

Canvas = Float[np.ndarray, "height width channel"]


def draw(
    objects: Sequence[SceneObject], *, background: str, box: Rectangle | None, rng: random.Random
) -> Image.Image:
    """Draw one scene.

    Args:
        objects: What to draw; their frames must not overlap.
        background: One of BACKGROUNDS.
        box: Outline to draw, following the inner edge of this rectangle, or None.
        rng: Decides shades, stripe widths and noise.

    Returns:
        An 80×80 RGB image.
    """
    canvas = _background(background, rng)
    for item in objects:
        _paint(canvas, item, rng)
    if box is not None:
        _outline(canvas, box)
    noise = np.random.Generator(np.random.PCG64(rng.getrandbits(64)))
    canvas += noise.integers(-NOISE, NOISE, canvas.shape, dtype=np.int8, endpoint=True)
    pixels: UInt8[np.ndarray, "height width channel"] = canvas.clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def _background(style: str, rng: random.Random) -> Canvas:
    grey = rng.uniform(95, 160)
    shade = np.array([grey + rng.uniform(-12, 12) for _ in range(3)], np.float32)
    strength, period = rng.uniform(6, 14), rng.choice((6, 8, 10, 14))
    rows, columns = np.arange(SIZE, dtype=np.float32)[:, None], np.arange(SIZE, dtype=np.float32)[None]
    if style == "plain":
        wave = np.zeros((SIZE, SIZE), np.float32)
    elif style == "gradient":
        wave = (rng.uniform(-1, 1) * rows + rng.uniform(-1, 1) * columns) / SIZE * 2
    elif style == "striped":
        wave = np.sign((rows + rng.choice((-1, 0, 1)) * columns) % period - period / 2)
    else:
        wave = np.sign(rows % period - period / 2) * np.sign(columns % period - period / 2)
    return shade + strength * np.broadcast_to(wave, (SIZE, SIZE))[..., None].astype(np.float32)


def _paint(canvas: Canvas, item: SceneObject, rng: random.Random) -> None:
    colour = np.array([c + rng.uniform(-10, 10) for c in PALETTE[item.colour]], np.float32)
    shape = glyph(item.name, item.size)
    window = canvas[item.top : item.top + item.size, item.left : item.left + item.size]
    window[shape] = colour
    if item.texture == "plain":
        return
    rows, columns = np.arange(item.size)[:, None], np.arange(item.size)[None]
    pattern = (rows + columns) % 4 < 1 if item.texture == "striped" else (rows % 3 < 1) & (columns % 3 < 1)
    window[shape & pattern] = colour * 0.75 + 32  # a quarter of the way to mid-grey


def _outline(canvas: Canvas, box: Rectangle) -> None:
    left, top, right, bottom = box
    inner = canvas[top + LINE : bottom - LINE, left + LINE : right - LINE].copy()
    canvas[top:bottom, left:right] = BOX_COLOUR
    canvas[top + LINE : bottom - LINE, left + LINE : right - LINE] = inner
