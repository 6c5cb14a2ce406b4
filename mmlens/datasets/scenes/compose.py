"""Scenes made to order: the objects that somebody asks for, in places drawn by lot."""

import random
from collections.abc import Sequence

from mmlens.datasets.scenes.scene import SLOTS, drawn, place, slot_frame, split_of
from mmlens.datasets.scenes.values import BACKGROUNDS, CLASSES, COLOURS, PALETTES, SPLITS, Scene
from mmlens.errors import ConfigError

TRIES = 1000


def compose(
    wanted: Sequence[tuple[str, str]],
    *,
    split: str = "heldout",
    seed: int = 0,
    boxed: int | None = None,
    background: str = "plain",
    palette: str = "plain",
) -> Scene:
    """A scene of kind "composed" with exactly these small objects.

    Args:
        wanted: (colour, class) of each object, at most 16.
        split: The split that the layout must belong to; digits come from its handwriting samples.
        seed: Decides places, sizes, textures and handwriting.
        boxed: Position in ``wanted`` of the object with a box around it.
        background: One of BACKGROUNDS.
        palette: One of PALETTES.

    Raises:
        ConfigError: If there are no or more objects than fit, a word is unknown, or nothing was found in the
            split (a layout belongs to one split only; with very few possible layouts a split may have none).
    """
    _check(wanted, split, boxed, background, palette)
    key = f"compose/{seed}/{split}/{list(wanted)}"
    rng = random.Random(key)
    for _ in range(TRIES):
        slots = rng.sample(SLOTS, len(wanted))
        pairs = zip(wanted, slots, strict=True)
        objects = [place(name, colour, slot_frame(slot), split, rng) for (colour, name), slot in pairs]
        if split_of(objects) == split:
            style = {"background": background, "palette": palette, "boxed": boxed, "key": key}
            return drawn(objects, split=split, index=0, seed=seed, kind="composed", **style)
    raise ConfigError(f"no layout of {list(wanted)} was found in split {split!r}; try another seed or split")


def _check(
    wanted: Sequence[tuple[str, str]], split: str, boxed: int | None, background: str, palette: str
) -> None:
    if not 1 <= len(wanted) <= len(SLOTS):
        raise ConfigError(f"{len(wanted)} objects were asked for; a scene holds 1 to {len(SLOTS)}")
    for colour, name in wanted:
        if colour not in COLOURS:
            raise ConfigError(f"colour {colour!r} is unknown; the colours are {', '.join(COLOURS)}")
        if name not in CLASSES:
            raise ConfigError(f"{name!r} is no scene class; the classes are {', '.join(CLASSES)}")
    for what, value, known in (
        ("split", split, SPLITS),
        ("background", background, BACKGROUNDS),
        ("palette", palette, PALETTES),
    ):
        if value not in known:
            raise ConfigError(f"{what} {value!r} is unknown; there are {', '.join(known)}")
    if boxed is not None and not 0 <= boxed < len(wanted):
        raise ConfigError(f"object {boxed} is to be boxed; the objects are numbered 0 to {len(wanted) - 1}")
