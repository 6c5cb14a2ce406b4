"""Scenes: procedural pictures of coloured shapes, and questions whose answers are known exactly.

``scene`` gives one picture with its objects, ``questions`` what can be asked about it, ``prompts`` a list
ready for a model. Everything follows from (seed, split, index).
"""

from mmlens.datasets.scenes.questions import ANSWERS, FAMILIES, Question, prompts, questions, sample
from mmlens.datasets.scenes.scene import scene, split_of
from mmlens.datasets.scenes.values import CLASSES, COLOURS, KINDS, SIZE, SPLITS, Scene, SceneObject

__all__ = [
    "ANSWERS",
    "CLASSES",
    "COLOURS",
    "FAMILIES",
    "KINDS",
    "SIZE",
    "SPLITS",
    "Question",
    "Scene",
    "SceneObject",
    "prompts",
    "questions",
    "sample",
    "scene",
    "split_of",
]
