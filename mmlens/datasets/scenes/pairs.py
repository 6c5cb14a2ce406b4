"""Pairs of scenes that differ in one thing: what they show, or only how they show it.

A *change* alters the answer to one question: another class, another colour, one object more or less. A
*restyle* keeps every object and the answer, and alters texture and background, or the places, or the palette.
Whatever was not altered keeps its pixels, noise included. Both scenes of a pair lie in one split.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmlens.datasets.scenes.questions import FAMILIES, Question, as_prompt, ask, questions
from mmlens.datasets.scenes.scene import SLOTS, drawn, place, scene, slot_frame, split_of
from mmlens.datasets.scenes.values import (
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    LINE,
    MAIN_FRAME,
    MAX_COUNT,
    PALETTES,
    SIZE,
    SLOT,
    TEXTURES,
    Rectangle,
    Scene,
    SceneObject,
)
from mmlens.errors import ConfigError

if TYPE_CHECKING:
    from mmlens.inputs import Prompt

CHANGES = {"object": "main", "colour": "colour", "count": "count"}
"""What can be changed → the question family asked about it if no other is named."""
STYLES = ("texture", "position", "palette")
_FAMILIES = {"object": ("main", "box", "existence", "hop"), "colour": ("colour",), "count": ("count",)}
_KINDS = {"main": "single", "count": "multi", "hop": "matched"}
_TRIES = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Two scenes and one question, asked of both.

    The altered scene keeps the kind of the first, though a change can break what that kind promises.

    Attributes:
        change: One of CHANGES or STYLES.
        scene: The scene as the dataset has it.
        question: The question about it.
        other: The altered scene.
        other_question: The same words about the altered scene: another answer after a change, the same
            after a restyle.
    """

    change: str
    scene: Scene
    question: Question
    other: Scene
    other_question: Question

    def prompts(self) -> "tuple[Prompt, Prompt]":
        """Both, ready for a model. After a change, each one's foil is the other's answer."""
        one, two = self.question, self.other_question
        if one.answer != two.answer:
            one, two = replace(one, foil=two.answer), replace(two, foil=one.answer)
        return as_prompt(self.scene, one), as_prompt(self.other, two)


def pair(split: str, index: int, *, change: str, family: str | None = None, seed: int = 0) -> Pair | None:
    """The pair that starts from one scene of the dataset.

    Args:
        split: One of SPLITS.
        index: Position in the split.
        change: One of CHANGES or STYLES.
        family: Question family; None takes the one that belongs to the change (a restyle: main).
        seed: Seed of the dataset.

    Returns:
        The pair, or None if this scene cannot answer such a question before and after the change.

    Raises:
        ConfigError: If an argument is unknown, or the change cannot alter the family's answer.
    """
    family = _checked(change, family)
    first = scene(split, index, seed=seed, kind=_KINDS.get(family))
    rng = random.Random(f"pair/{seed}/{split}/{index}/{change}/{family}")
    asked = [question for question in questions(first) if question.family == family]
    if not asked:
        return None
    question = rng.choice(asked)
    for _ in range(_TRIES):
        second = _altered(first, question, change, rng)
        if second is None:
            return None
        again = ask(second, family, question.name, question.phrasing)
        if again and again.text == question.text and (again.answer != question.answer) == (change in CHANGES):
            return Pair(change=change, scene=first, question=question, other=second, other_question=again)
    return None


def paired_prompts(
    split: str, n: int, *, change: str, family: str | None = None, seed: int = 0
) -> "list[tuple[Prompt, Prompt]]":
    """The first ``n`` pairs as prompts: (as the dataset has it, altered). Arguments as in :func:`pair`.

    Raises:
        ConfigError: If ``n`` is negative, or as :func:`pair`.
    """
    if n < 0:
        raise ConfigError(f"{n} pairs were asked for; ask for 0 or more")
    found, index = [], 0
    while len(found) < n:
        made = pair(split, index, change=change, family=family, seed=seed)
        index += 1
        if made is not None:
            found.append(made.prompts())
    return found


def _checked(change: str, family: str | None) -> str:
    if change not in (*CHANGES, *STYLES):
        raise ConfigError(f"change {change!r} is unknown; there are {', '.join((*CHANGES, *STYLES))}")
    family = family or CHANGES.get(change, "main")
    if family not in FAMILIES:
        raise ConfigError(f"question family {family!r} is unknown; the families are {', '.join(FAMILIES)}")
    if change in CHANGES and family not in _FAMILIES[change]:
        raise ConfigError(
            f"changing the {change} does not change the answer of {family!r} questions; "
            f"ask {', '.join(_FAMILIES[change])}"
        )
    return family


def _altered(first: Scene, question: Question, change: str, rng: random.Random) -> Scene | None:
    """One try at the other scene, in the same split; None if this scene cannot be altered so."""
    style = {"background": first.background, "palette": first.palette, "boxed": first.boxed}
    for _ in range(_TRIES):
        made = _ALTER[change](first, question, rng)
        if made is None:
            return None
        objects, changed = made
        if split_of(objects) == first.split:
            key = f"scene/{first.seed}/{first.split}/{first.index}/{_KINDS.get(question.family)}"
            place_ = {"split": first.split, "index": first.index, "seed": first.seed, "kind": first.kind}
            return drawn(objects, **place_, key=key, **{**style, **changed})
    return None


Altered = tuple[Sequence[SceneObject], dict]


def _swap(first: Scene, old: SceneObject, new: SceneObject) -> list[SceneObject]:
    return [new if item is old else item for item in first.objects]


def _target(first: Scene, question: Question) -> SceneObject:
    return question.regions["object"][0]


def _object(first: Scene, question: Question, rng: random.Random) -> Altered | None:
    """The object asked about becomes one of a class that the scene does not show."""
    present = {item.name for item in first.objects}
    if question.family == "existence" and len(question.regions.get("object", ())) != 1:
        return None
    old = _target(first, question)
    name = rng.choice([name for name in CLASSES if name not in present])
    new = place(name, old.colour, old.frame, first.split, rng)
    if old.size >= 15 or name != "digit":
        new = replace(new, size=old.size, left=old.left, top=old.top, texture=old.texture)
    return _swap(first, old, new), {}


def _colour(first: Scene, question: Question, rng: random.Random) -> Altered | None:
    old = _target(first, question)
    colour = rng.choice([colour for colour in COLOURS if colour != old.colour])
    return _swap(first, old, replace(old, colour=colour)), {}


def _count(first: Scene, question: Question, rng: random.Random) -> Altered | None:
    """One object of the counted class more, or one fewer (never the boxed one)."""
    counted = list(question.regions["object"])
    boxed = None if first.boxed is None else first.objects[first.boxed]
    if len(counted) > 1 and (len(counted) == MAX_COUNT or rng.random() < 0.5):
        gone = rng.choice([item for item in counted if item is not boxed])
        objects = [item for item in first.objects if item is not gone]
    else:
        taken = {item.frame for item in first.objects}
        free = [frame for frame in map(slot_frame, SLOTS) if frame not in taken]
        new = place(counted[0].name, counted[0].colour, rng.choice(free), first.split, rng)
        objects = [*counted, new, *[item for item in first.objects if item not in counted]]
    return objects, {"boxed": None if boxed is None else objects.index(boxed)}


def _texture(first: Scene, question: Question, rng: random.Random) -> Altered | None:
    """Every object gets another texture, the scene another background."""
    objects = [
        replace(item, texture=rng.choice([t for t in TEXTURES if t != item.texture]))
        for item in first.objects
    ]
    return objects, {"background": rng.choice([b for b in BACKGROUNDS if b != first.background])}


def _palette(first: Scene, question: Question, rng: random.Random) -> Altered | None:
    return first.objects, {"palette": rng.choice([p for p in PALETTES if p != first.palette])}


def _position(first: Scene, question: Question, rng: random.Random) -> Altered | None:
    """Every object keeps its looks and goes to a place drawn by lot."""
    taken: list[Rectangle] = []
    objects = []
    for item in first.objects:
        side = item.frame[2] - item.frame[0]
        step = SLOT // 2 if side == MAIN_FRAME else SLOT
        line = range(0, SIZE - side + 1, step)
        free = [(x, y, x + side, y + side) for y in line for x in line]
        free = [frame for frame in free if not any(_overlap(frame, other) for other in taken)]
        if not free:
            return None
        frame = rng.choice(free)
        taken.append(frame)
        room = side - 2 * LINE - item.size
        left, top = (corner + LINE + rng.randint(0, room) for corner in frame[:2])
        objects.append(replace(item, frame=frame, left=left, top=top))
    return objects, {}


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


_ALTER = {
    "object": _object,
    "colour": _colour,
    "count": _count,
    "texture": _texture,
    "position": _position,
    "palette": _palette,
}
