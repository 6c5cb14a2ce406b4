"""Scenes: procedural pictures of coloured shapes and digits, and questions whose answers are known exactly.

``scene`` gives one picture with its objects, ``questions`` what can be asked about it, ``prompts`` a list
ready for a model, ``pair`` two pictures that differ in one thing, ``compose`` a picture made to order.
Everything follows from (seed, split, index).
"""

from mmlens.datasets.scenes.compose import compose
from mmlens.datasets.scenes.pairs import CHANGES, STYLES, Pair, pair, paired_prompts
from mmlens.datasets.scenes.questions import (
    ANSWERS,
    FAMILIES,
    PHRASINGS,
    Question,
    as_prompt,
    ask,
    prompts,
    questions,
    sample,
)
from mmlens.datasets.scenes.scene import scene, split_of
from mmlens.datasets.scenes.values import (
    CLASSES,
    COLOURS,
    DIGITS,
    GROUPS,
    KINDS,
    PALETTES,
    SIZE,
    SPLITS,
    TEXTURES,
    Scene,
    SceneObject,
)

__all__ = [
    "ANSWERS",
    "CHANGES",
    "CLASSES",
    "COLOURS",
    "DIGITS",
    "FAMILIES",
    "GROUPS",
    "KINDS",
    "PALETTES",
    "PHRASINGS",
    "SIZE",
    "SPLITS",
    "STYLES",
    "TEXTURES",
    "Pair",
    "Question",
    "Scene",
    "SceneObject",
    "as_prompt",
    "ask",
    "compose",
    "pair",
    "paired_prompts",
    "prompts",
    "questions",
    "sample",
    "scene",
    "split_of",
]
