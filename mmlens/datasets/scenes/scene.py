"""Samples scenes, deterministically from (seed, split, index).

1. Draw a layout: classes, colours, sizes and places on the cell lattice.
2. Fingerprint it. The fingerprint alone decides which split a layout belongs to, so no layout can occur in
   two splits, whatever the seeds; a layout of another split is thrown away and drawn again.
3. Draw the picture.
"""

import random
import zlib
from collections.abc import Sequence

from mmlens.datasets.scenes import digits
from mmlens.datasets.scenes.draw import draw
from mmlens.datasets.scenes.values import (
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    GROUP_OF,
    KINDS,
    LINE,
    MAIN_FRAME,
    MAX_COUNT,
    PALETTES,
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
ALONE_CHANCE = 0.2
"""Share of "multi" scenes that show the counted class and nothing else."""
_SHARES = {"train": range(0, 70), "attribution": range(70, 85), "heldout": range(85, 100)}
DIGIT_WEIGHT = 4 / 7
"""Weight of the digit as the second class, by which it becomes as frequent there as every other class."""
SLOTS = tuple((left, top) for top in range(0, SIZE, SLOT) for left in range(0, SIZE, SLOT))
"""Corners of the places for small objects; as many as fit into one scene."""


def scene(split: str, index: int, *, seed: int = 0, kind: str | None = None) -> Scene:
    """One scene of the dataset.

    Args:
        split: One of SPLITS.
        index: Position in the split, from 0; there is no last one.
        seed: Seed of the dataset. Splits are disjoint across seeds too.
        kind: One of KINDS, or None for any with equal chance.

    Returns:
        The scene, equal for equal arguments.

    Raises:
        ConfigError: If an argument is unknown or negative.
    """
    _check(split, index, kind)
    key = f"scene/{seed}/{split}/{index}/{kind}"
    rng = random.Random(key)
    kind = kind or rng.choice(KINDS)
    while True:
        objects = _LAYOUTS[kind](rng, split)
        if split_of(objects) == split:
            break
    boxed = _boxed(objects, rng) if rng.random() < BOX_CHANCE else None
    style = {"background": rng.choice(BACKGROUNDS), "palette": rng.choice(PALETTES)}
    return drawn(objects, split=split, index=index, seed=seed, kind=kind, boxed=boxed, key=key, **style)


def drawn(
    objects: Sequence[SceneObject],
    *,
    split: str,
    index: int,
    seed: int,
    kind: str,
    boxed: int | None,
    key: str,
    background: str,
    palette: str,
) -> Scene:
    """The scene of these objects, with its picture; see :class:`Scene` and :func:`draw` for the arguments."""
    frame = None if boxed is None else objects[boxed].frame
    image = draw(objects, background=background, box=frame, key=key, palette=palette)
    return Scene(
        split=split,
        index=index,
        seed=seed,
        kind=kind,
        objects=tuple(objects),
        boxed=boxed,
        background=background,
        palette=palette,
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


def _single(rng: random.Random, split: str) -> tuple[SceneObject, ...]:
    """One main object in a 40-pixel frame, and up to three small ones of other classes beside it."""
    names = rng.sample(CLASSES, 1 + rng.randint(0, 3))
    left, top = (rng.randrange(0, SIZE - MAIN_FRAME + 1, SLOT // 2) for _ in range(2))
    frame = (left, top, left + MAIN_FRAME, top + MAIN_FRAME)
    free = [(x, y) for x, y in SLOTS if not _overlap((x, y, x + SLOT, y + SLOT), frame)]
    main = place(names[0], rng.choice(COLOURS), frame, split, rng)
    slots = rng.sample(free, len(names) - 1)
    rest = zip(names[1:], slots, strict=True)
    return (main, *[place(name, rng.choice(COLOURS), slot_frame(slot), split, rng) for name, slot in rest])


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _multi(rng: random.Random, split: str) -> tuple[SceneObject, ...]:
    """1-7 small objects of a first class, mostly with 1-4 of one of another group; one colour a class."""
    first, counts = rng.choice(CLASSES), [rng.randint(1, MAX_COUNT)]
    names = [first]
    if rng.random() >= ALONE_CHANCE:
        others = [name for name in CLASSES if GROUP_OF[name] != GROUP_OF[first]]
        weights = [DIGIT_WEIGHT if name == "digit" else 1.0 for name in others]
        names += rng.choices(others, weights)
        counts.append(rng.randint(1, 4))
    wanted = [
        (name, colour)
        for name, count in zip(names, counts, strict=True)
        for colour in [rng.choice(COLOURS)]
        for _ in range(count)
    ]
    return _scatter(wanted, rng, split)


def _matched(rng: random.Random, split: str) -> tuple[SceneObject, ...]:
    """Six small objects of six classes; three colours, each shared by two."""
    colours = rng.sample(COLOURS, 3) * 2
    return _scatter(list(zip(rng.sample(CLASSES, 6), colours, strict=True)), rng, split)


_LAYOUTS = {"single": _single, "multi": _multi, "matched": _matched}


def _scatter(wanted: Sequence[tuple[str, str]], rng: random.Random, split: str) -> tuple[SceneObject, ...]:
    slots = rng.sample(SLOTS, len(wanted))
    pairs = zip(wanted, slots, strict=True)
    return tuple(place(name, colour, slot_frame(slot), split, rng) for (name, colour), slot in pairs)


def slot_frame(corner: tuple[int, int]) -> Rectangle:
    """The frame of a small object whose upper left corner is here."""
    left, top = corner
    return left, top, left + SLOT, top + SLOT


def place(name: str, colour: str, frame: Rectangle, split: str, rng: random.Random) -> SceneObject:
    """An object somewhere in its frame, its size, texture and (for a digit) handwriting drawn by lot."""
    left, top, right, _ = frame
    smallest, largest = (24, 35) if right - left == MAIN_FRAME else (13, 16)
    size = rng.randint(smallest if name != "digit" else max(smallest, 15), largest)
    room = right - left - 2 * LINE - size
    return SceneObject(
        name=name,
        colour=colour,
        texture=rng.choice(TEXTURES),
        size=size,
        left=left + LINE + rng.randint(0, room),
        top=top + LINE + rng.randint(0, room),
        frame=frame,
        sample=rng.choice(digits.samples(split)) if name == "digit" else None,
    )


def _boxed(objects: Sequence[SceneObject], rng: random.Random) -> int:
    """The index of the object to box: first a class, then one object of it, so that numbers do not tell."""
    name = rng.choice(sorted({item.name for item in objects}))
    return rng.choice([i for i, item in enumerate(objects) if item.name == name])
