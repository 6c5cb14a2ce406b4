"""Questions about a scene, with the answer, a plausible wrong answer, and what the question is about."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmlens.datasets.scenes.scene import scene
from mmlens.datasets.scenes.values import (
    CLASSES,
    COLOURS,
    DIGITS,
    GROUP_OF,
    MAX_COUNT,
    PLURALS,
    SIZE,
    Scene,
    SceneObject,
)
from mmlens.errors import ConfigError

if TYPE_CHECKING:
    from mmlens.inputs import Prompt

TEMPLATES = {
    "main": "What is the main object?",
    "colour": "What colour is the {name}?",
    "count": "How many {plural} are there?",
    "existence": "Is there a {name} in the image?",
    "box": "Which object is in the box?",
    "side": "Which side is the {name} on?",
    "digit": "What number is the digit?",
    "hop": "Which object has the colour of the {name}?",
}
"""Question family → its question; of counting, the plainest of PHRASINGS."""
PHRASINGS = {
    "object": TEMPLATES["count"],
    "super": "How many {group} are there?",
    "general": "How many objects are there?",
    "boxed object": "How many of these {plural} are there?",
    "boxed super": "How many of these {group} are there?",
    "boxed general": "How many of these are there?",
}
"""The ways of asking how many, after PointQA: which objects are meant is told by class, by group, by nothing,
or by a box around one of them. All have the same answer in a scene that they can be asked of."""
FAMILIES = tuple(TEMPLATES)
ANSWERS = {
    "main": CLASSES,
    "colour": COLOURS,
    "count": tuple(str(n) for n in range(1, MAX_COUNT + 1)),
    "existence": ("yes", "no"),
    "box": CLASSES,
    "side": ("left", "right"),
    "digit": DIGITS,
    "hop": CLASSES,
}
_KIND_OF = {"main": "single", "count": "multi", "hop": "matched"}


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one scene.

    Attributes:
        family: One of FAMILIES.
        text: The question as the model reads it.
        answer: The right answer, one word.
        foil: A plausible wrong answer of the same family; where the scene offers one (another object's
            class or colour), that one.
        regions: Name of a region → the objects that make it up. "object" is what the question is about;
            of a two-hop question the one whose word is the answer, and "via" the one that it names.
        name: The class that the question names, or "".
        phrasing: Of a counting question, one of PHRASINGS; else "".
    """

    family: str
    text: str
    answer: str
    foil: str
    regions: Mapping[str, tuple[SceneObject, ...]]
    name: str = ""
    phrasing: str = ""


def questions(scene: Scene) -> tuple[Question, ...]:
    """Every question that this scene can answer, in the order of FAMILIES; always the same ones.

    Existence is asked once with yes and once with no. Colour, side, digit and two hops are asked only of
    classes with one object, side only where the object lies in one half of the picture, two hops only where
    one other object has the colour.
    """
    rng = random.Random(f"questions/{scene.seed}/{scene.split}/{scene.index}/{scene.kind}")
    found = (ask(scene, family, name, phrasing) for family, name, phrasing in _askable(scene, rng))
    return tuple(question for question in found if question is not None)


def ask(scene: Scene, family: str, name: str = "", phrasing: str = "") -> Question | None:
    """One question of this scene, or None if it has no single right answer there.

    Args:
        scene: The scene.
        family: One of FAMILIES.
        name: The class that the question names; "" for families that name none.
        phrasing: Of a counting question, one of PHRASINGS; "" means "object".

    Raises:
        ConfigError: If the family, class or phrasing is unknown.
    """
    if family not in FAMILIES:
        raise ConfigError(f"question family {family!r} is unknown; the families are {', '.join(FAMILIES)}")
    if name and name not in CLASSES:
        raise ConfigError(f"{name!r} is no scene class; the classes are {', '.join(CLASSES)}")
    if phrasing and phrasing not in PHRASINGS:
        raise ConfigError(f"phrasing {phrasing!r} is unknown; the phrasings are {', '.join(PHRASINGS)}")
    phrasing = phrasing or ("object" if family == "count" else "")
    rng = random.Random(f"foil/{scene.seed}/{scene.split}/{scene.index}/{family}/{name}/{phrasing}")
    return _count(scene, name, phrasing, rng) if family == "count" else _ASK[family](scene, name, rng)


def prompts(split: str, n: int, *, family: str = "main", seed: int = 0) -> "list[Prompt]":
    """The first ``n`` prompts of one question family, at most one per scene.

    Args:
        split: One of SPLITS.
        n: How many.
        family: One of FAMILIES.
        seed: Seed of the dataset.

    Returns:
        Prompts with image, question, answer, foil and the region "object" (absent where the object is).

    Raises:
        ConfigError: If ``n`` is negative, or the split or family unknown.
    """
    return [as_prompt(*pair) for pair in sample(split, n, family=family, seed=seed)]


def as_prompt(scene: Scene, question: Question) -> "Prompt":
    """A question about a scene, ready for a model."""
    from mmlens.inputs import Prompt, RegionMask

    regions = {
        name: tuple(RegionMask(mask=item.mask) for item in objects)
        for name, objects in question.regions.items()
    }
    return Prompt(
        question=question.text,
        image=scene.image,
        answer=question.answer,
        foil=question.foil,
        regions=regions,
    )


def sample(split: str, n: int, *, family: str = "main", seed: int = 0) -> Iterator[tuple[Scene, Question]]:
    """The scenes and questions behind :func:`prompts`, one at a time.

    Yields:
        A scene and one question of the family about it; scenes that cannot answer one are passed over.
    """
    if family not in FAMILIES:
        raise ConfigError(f"question family {family!r} is unknown; the families are {', '.join(FAMILIES)}")
    if n < 0:
        raise ConfigError(f"{n} prompts were asked for; ask for 0 or more")
    index = 0
    while n > 0:
        picture = scene(split, index, seed=seed, kind=_KIND_OF.get(family))
        rng = random.Random(f"prompt/{seed}/{split}/{index}/{family}")
        index += 1
        choices = [question for question in questions(picture) if question.family == family]
        if choices:
            n -= 1
            yield picture, rng.choice(choices)


# --- what can be asked


def _askable(scene: Scene, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    present = sorted({item.name for item in scene.objects})
    missing = [name for name in CLASSES if name not in present]
    yield "main", "", ""
    yield from (("colour", name, "") for name in present)
    yield from (("count", scene.objects[0].name, phrasing) for phrasing in PHRASINGS)
    yield "existence", rng.choice(present), ""
    if missing:
        yield "existence", rng.choice(missing), ""
    yield "box", "", ""
    yield from (("side", name, "") for name in present)
    yield "digit", "", ""
    yield from (("hop", name, "") for name in present)


# --- each family: the question, or None


def _question(
    family: str,
    answer: str,
    foil: str,
    name: str,
    objects: tuple[SceneObject, ...],
    **more: tuple[SceneObject],
) -> Question:
    text = TEMPLATES[family].format(name=name)
    regions = {"object": objects, **more} if objects else {}
    return Question(family=family, text=text, answer=answer, foil=foil, regions=regions, name=name)


def _other(value: str, present: list[str], known: tuple[str, ...], rng: random.Random) -> str:
    """Another value than this one: one that the scene shows if there is one, else any."""
    nearby = sorted({other for other in present if other != value})
    return rng.choice(nearby or [other for other in known if other != value])


def _alone(scene: Scene, name: str) -> SceneObject | None:
    found = scene.named(name) if name else ()
    return found[0] if len(found) == 1 else None


def _main(scene: Scene, name: str, rng: random.Random) -> Question | None:
    if scene.kind != "single":
        return None
    main, *rest = scene.objects
    foil = _other(main.name, [item.name for item in rest], CLASSES, rng)
    return _question("main", main.name, foil, "", (main,))


def _colour(scene: Scene, name: str, rng: random.Random) -> Question | None:
    item = _alone(scene, name)
    if item is None:
        return None
    foil = _other(item.colour, [other.colour for other in scene.objects], COLOURS, rng)
    return _question("colour", item.colour, foil, name, (item,))


def _count(scene: Scene, name: str, phrasing: str, rng: random.Random) -> Question | None:
    """Asked of "multi" scenes: there, class, group and box agree on which objects are meant."""
    objects = scene.named(name) if name else ()
    if scene.kind != "multi" or not objects or name != scene.objects[0].name or len(objects) > MAX_COUNT:
        return None
    if phrasing.startswith("boxed") and (scene.boxed is None or scene.objects[scene.boxed].name != name):
        return None
    if phrasing == "general" and len(objects) < len(scene.objects):
        return None
    group = [item for item in scene.objects if GROUP_OF[item.name] == GROUP_OF[name]]
    if phrasing.endswith("super") and len(group) > len(objects):
        return None
    n = len(objects)
    foil = rng.choice([m for m in (n - 1, n + 1) if 1 <= m <= MAX_COUNT])
    return Question(
        family="count",
        text=PHRASINGS[phrasing].format(plural=PLURALS[name], group=GROUP_OF[name]),
        answer=str(n),
        foil=str(foil),
        regions={"object": objects},
        name=name,
        phrasing=phrasing,
    )


def _existence(scene: Scene, name: str, rng: random.Random) -> Question | None:
    if not name:
        return None
    objects = scene.named(name)
    answer, foil = ("yes", "no") if objects else ("no", "yes")
    return _question("existence", answer, foil, name, objects)


def _box(scene: Scene, name: str, rng: random.Random) -> Question | None:
    if scene.boxed is None:
        return None
    item = scene.objects[scene.boxed]
    foil = _other(item.name, [other.name for other in scene.objects], CLASSES, rng)
    return _question("box", item.name, foil, "", (item,))


def _side(scene: Scene, name: str, rng: random.Random) -> Question | None:
    item = _alone(scene, name)
    if item is None or item.frame[0] < SIZE / 2 < item.frame[2]:
        return None
    answer, foil = ("left", "right") if item.centre[0] < SIZE / 2 else ("right", "left")
    return _question("side", answer, foil, name, (item,))


def _digit(scene: Scene, name: str, rng: random.Random) -> Question | None:
    item = _alone(scene, "digit")
    if item is None or item.value is None:
        return None
    return _question("digit", item.value, _other(item.value, [], DIGITS, rng), "", (item,))


def _hop(scene: Scene, name: str, rng: random.Random) -> Question | None:
    via = _alone(scene, name)
    if via is None:
        return None
    found = [item for item in scene.objects if item.colour == via.colour and item is not via]
    if len(found) != 1:
        return None
    foil = _other(found[0].name, [item.name for item in scene.objects if item is not via], CLASSES, rng)
    return _question("hop", found[0].name, foil, name, (found[0],), via=(via,))


_ASK = {
    "main": _main,
    "colour": _colour,
    "existence": _existence,
    "box": _box,
    "side": _side,
    "digit": _digit,
    "hop": _hop,
}
