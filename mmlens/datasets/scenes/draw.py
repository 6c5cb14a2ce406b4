"""Turns a list of objects into pixels: background, objects, an optional box, then noise over everything."""

import random
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mmlens.datasets.scenes.values import LINE, PALETTE, SIZE, Rectangle, SceneObject

BOX_COLOUR = (0, 255, 255)
NOISE = 10
"""Largest change that noise makes to a channel, in grey levels."""

Canvas = Float[np.ndarray, "height width channel"]


def draw(
    objects: Sequence[SceneObject],
    *,
    background: str,
    box: Rectangle | None,
    key: str,
    palette: str = "plain",
) -> Image.Image:
    """Draw one scene.

    Background, noise and every object have their own random stream, so that two scenes of one key differ in
    the pixels of what was changed and nowhere else.

    Args:
        objects: What to draw; their frames must not overlap.
        background: One of BACKGROUNDS.
        box: Outline to draw, following the inner edge of this rectangle, or None.
        key: Decides shades, stripe widths and noise.
        palette: One of PALETTES.

    Returns:
        An 80×80 RGB image.
    """
    canvas = _background(background, random.Random(f"{key}/background"))
    for item in objects:
        _paint(canvas, item, palette, random.Random(f"{key}/object/{item.frame}"))
    if box is not None:
        _outline(canvas, box)
    noise = np.random.Generator(np.random.PCG64(random.Random(f"{key}/noise").getrandbits(64)))
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


def shade(colour: str, palette: str) -> Float[np.ndarray, " channel"]:
    """The RGB value of a colour in a palette, before its random shade."""
    plain = np.array(PALETTE[colour], np.float32)
    return {"plain": plain, "muted": 0.8 * plain + 25.6, "deep": 0.82 * plain}[palette]


def _paint(canvas: Canvas, item: SceneObject, palette: str, rng: random.Random) -> None:
    colour = shade(item.colour, palette) + np.array([rng.uniform(-10, 10) for _ in range(3)], np.float32)
    shape = item.shape
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
