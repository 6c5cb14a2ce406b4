"""Samples scenes, deterministically from (seed, split, index).

1. Draw a layout: classes, colours, sizes and places on the cell lattice.
2. Fingerprint it. The fingerprint alone decides which split a layout belongs to, so no layout can occur in
   two splits, whatever the seeds; a layout of another split is thrown away and drawn again.
3. Draw the picture.
"""

import random
import zlib
from collections.abc import Sequence

from mmlens.datasets.scenes.draw import draw
from mmlens.datasets.scenes.values import (
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    KINDS,
    LINE,
    MAIN_FRAME,
    MAX_COUNT,
    SIZE,
    SLOT,
    SPLITS,
    TEXTURES,
    Rectangle,
    Scene,
    SceneObject,
)
from mmlens.errors import ConfigError

BOX_CHANCE = 0.75
_SHARES = {"train": range(0, 70), "attribution": range(70, 85), "heldout": range(85, 100)}
_SLOTS = [(left, top) for top in range(0, SIZE, SLOT) for left in range(0, SIZE, SLOT)]


def scene(split: str, index: int, *, seed: int = 0, kind: str | None = None) -> Scene:
    """One scene of the dataset.

    Args:
        split: One of SPLITS.
        index: Position in the split, from 0; there is no last one.
        seed: Seed of the dataset. Splits are disjoint across seeds too.
        kind: One of KINDS, or None for either with equal chance.

    Returns:
        The scene, equal for equal arguments.

    Raises:
        ConfigError: If an argument is unknown or negative.
    """
    _check(split, index, kind)
    rng = random.Random(f"scene/{seed}/{split}/{index}/{kind}")
    kind = kind or rng.choice(KINDS)
    while True:
        objects = _single(rng) if kind == "single" else _multi(rng)
        if split_of(objects) == split:
            break
    boxed = _boxed(objects, rng) if rng.random() < BOX_CHANCE else None
    background = rng.choice(BACKGROUNDS)
    frame = None if boxed is None else objects[boxed].frame
    image = draw(objects, background=background, box=frame, rng=rng)
    return Scene(
        split=split,
        index=index,
        seed=seed,
        kind=kind,
        objects=objects,
        boxed=boxed,
        background=background,
        image=image,
    )


def split_of(objects: Sequence[SceneObject]) -> str:
    """The one split in which this layout may occur; order, texture and place in the frame do not count."""
    layout = sorted((item.frame, item.name, item.colour) for item in objects)
    share = zlib.crc32(repr(layout).encode()) % 100
    return next(name for name, shares in _SHARES.items() if share in shares)


def _check(split: str, index: int, kind: str | None) -> None:
    if split not in SPLITS:
        raise ConfigError(f"split {split!r} is unknown; the splits are {', '.join(SPLITS)}")
    if index < 0:
        raise ConfigError(f"scene index {index} is negative; indices start at 0")
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"scene kind {kind!r} is unknown; the kinds are {', '.join(KINDS)}")


def _single(rng: random.Random) -> tuple[SceneObject, ...]:
    """One main object in a 40-pixel frame, and up to three small ones of other classes beside it."""
    names = rng.sample(CLASSES, 1 + rng.randint(0, 3))
    left, top = (rng.randrange(0, SIZE - MAIN_FRAME + 1, SLOT // 2) for _ in range(2))
    frame = (left, top, left + MAIN_FRAME, top + MAIN_FRAME)
    free = [(x, y) for x, y in _SLOTS if not _overlap((x, y, x + SLOT, y + SLOT), frame)]
    main = _place(names[0], rng.choice(COLOURS), (left, top), MAIN_FRAME, rng.randint(24, 35), rng)
    slots = rng.sample(free, len(names) - 1)
    rest = zip(names[1:], slots, strict=True)
    return (main, *[_small(name, rng.choice(COLOURS), slot, rng) for name, slot in rest])


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _multi(rng: random.Random) -> tuple[SceneObject, ...]:
    """1-7 small objects of a first class, 1-3 of a second and perhaps one of a third; one colour a class."""
    counts = (rng.randint(1, MAX_COUNT), rng.randint(1, 3), rng.randint(0, 1))
    names = [
        (name, rng.choice(COLOURS), count) for name, count in zip(rng.sample(CLASSES, 3), counts, strict=True)
    ]
    wanted = [(name, colour) for name, colour, count in names for _ in range(count)]
    slots = rng.sample(_SLOTS, len(wanted))
    return tuple(_small(name, colour, slot, rng) for (name, colour), slot in zip(wanted, slots, strict=True))


def _small(name: str, colour: str, corner: tuple[int, int], rng: random.Random) -> SceneObject:
    return _place(name, colour, corner, SLOT, rng.randint(13, 16), rng)


def _place(
    name: str, colour: str, corner: tuple[int, int], side: int, size: int, rng: random.Random
) -> SceneObject:
    left, top = corner
    room = side - 2 * LINE - size
    return SceneObject(
        name=name,
        colour=colour,
        texture=rng.choice(TEXTURES),
        size=size,
        left=left + LINE + rng.randint(0, room),
        top=top + LINE + rng.randint(0, room),
        frame=(left, top, left + side, top + side),
    )


def _boxed(objects: Sequence[SceneObject], rng: random.Random) -> int:
    """The index of the object to box: first a class, then one object of it, so that numbers do not tell."""
    name = rng.choice(sorted({item.name for item in objects}))
    return rng.choice([i for i, item in enumerate(objects) if item.name == name])
