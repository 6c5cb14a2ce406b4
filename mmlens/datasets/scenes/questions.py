"""Questions about a scene, with the answer, a plausible wrong answer, and what the question is about."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmlens.datasets.scenes.scene import scene
from mmlens.datasets.scenes.values import CLASSES, COLOURS, MAX_COUNT, PLURALS, SIZE, Scene, SceneObject
from mmlens.errors import ConfigError

if TYPE_CHECKING:
    from mmlens.inputs import Prompt

TAIL = "Answer with a single word."
TEMPLATES = {
    "main": "What is the main object?",
    "colour": "What colour is the {name}?",
    "count": "How many {plural} are there?",
    "existence": "Is there a {name} in the image?",
    "box": "Which object is in the box?",
    "side": "Is the {name} on the left or on the right?",
}
FAMILIES = tuple(TEMPLATES)
ANSWERS = {
    "main": CLASSES,
    "colour": COLOURS,
    "count": tuple(str(n) for n in range(1, MAX_COUNT + 1)),
    "existence": ("yes", "no"),
    "box": CLASSES,
    "side": ("left", "right"),
}
_KIND_OF = {"main": "single", "count": "multi"}


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one scene.

    Attributes:
        family: One of FAMILIES.
        text: The question as the model reads it, with "Answer with a single word."
        answer: The right answer, one word.
        foil: A plausible wrong answer of the same family; where the scene offers one (another object's
            class or colour), that one.
        regions: Name of a region → the objects that make it up. "object" is what the question is about.
    """

    family: str
    text: str
    answer: str
    foil: str
    regions: Mapping[str, tuple[SceneObject, ...]]


def questions(scene: Scene) -> tuple[Question, ...]:
    """Every question that this scene can answer, in the order of FAMILIES; always the same ones.

    Existence is asked once with yes and once with no. Colour and side are asked only of classes with one
    object, and side only where the object is clear of the middle.
    """
    rng = random.Random(f"questions/{scene.seed}/{scene.split}/{scene.index}/{scene.kind}")
    makers = (_main, _colour, _count, _existence, _box, _side)
    return tuple(question for maker in makers for question in maker(scene, rng))


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
    from mmlens.inputs import Prompt, RegionMask

    found = []
    for picture, question in sample(split, n, family=family, seed=seed):
        regions = {
            name: tuple(RegionMask(mask=item.mask) for item in objects)
            for name, objects in question.regions.items()
        }
        prompt = Prompt(
            question=question.text,
            image=picture.image,
            answer=question.answer,
            foil=question.foil,
            regions=regions,
        )
        found.append(prompt)
    return found


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


def _question(
    family: str, answer: str, foil: str, name: str = "", objects: tuple[SceneObject, ...] = ()
) -> Question:
    text = TEMPLATES[family].format(name=name, plural=PLURALS.get(name, ""))
    regions = {"object": objects} if objects else {}
    return Question(family=family, text=f"{text} {TAIL}", answer=answer, foil=foil, regions=regions)


def _other(value: str, present: list[str], known: tuple[str, ...], rng: random.Random) -> str:
    """Another value than this one: one that the scene shows if there is one, else any."""
    nearby = sorted({other for other in present if other != value})
    return rng.choice(nearby or [other for other in known if other != value])


def _main(scene: Scene, rng: random.Random) -> Iterator[Question]:
    if scene.kind == "single":
        main, *rest = scene.objects
        foil = _other(main.name, [item.name for item in rest], CLASSES, rng)
        yield _question("main", main.name, foil, objects=(main,))


def _alone(scene: Scene) -> list[SceneObject]:
    return [item for item in scene.objects if len(scene.named(item.name)) == 1]


def _colour(scene: Scene, rng: random.Random) -> Iterator[Question]:
    for item in _alone(scene):
        foil = _other(item.colour, [other.colour for other in scene.objects], COLOURS, rng)
        yield _question("colour", item.colour, foil, item.name, (item,))


def _count(scene: Scene, rng: random.Random) -> Iterator[Question]:
    if scene.kind == "multi":
        name = scene.objects[0].name
        objects = scene.named(name)
        n = len(objects)
        foil = rng.choice([m for m in (n - 1, n + 1) if 1 <= m <= MAX_COUNT])
        yield _question("count", str(n), str(foil), name, objects)


def _existence(scene: Scene, rng: random.Random) -> Iterator[Question]:
    present = sorted({item.name for item in scene.objects})
    there = rng.choice(present)
    missing = rng.choice([name for name in CLASSES if name not in present])
    yield _question("existence", "yes", "no", there, scene.named(there))
    yield _question("existence", "no", "yes", missing)


def _box(scene: Scene, rng: random.Random) -> Iterator[Question]:
    if scene.boxed is not None:
        item = scene.objects[scene.boxed]
        foil = _other(item.name, [other.name for other in scene.objects], CLASSES, rng)
        yield _question("box", item.name, foil, objects=(item,))


def _side(scene: Scene, rng: random.Random) -> Iterator[Question]:
    for item in _alone(scene):
        x = item.centre[0]
        if x != SIZE / 2:
            answer, foil = ("left", "right") if x < SIZE / 2 else ("right", "left")
            yield _question("side", answer, foil, item.name, (item,))
