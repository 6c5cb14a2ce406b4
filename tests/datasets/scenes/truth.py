"""The right answer of a question, worked out anew from its words and the objects' masks."""

import re

import numpy as np
from sklearn.datasets import load_digits

from mmlens.datasets.scenes import CLASSES, GROUPS, Question, Scene, SceneObject

PLURALS = {**{name + "s": name for name in CLASSES if name != "cross"}, "crosses": "cross"}
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}
WRITTEN = load_digits().target


def truth(picture: Scene, question: Question) -> str:
    """The answer; an assertion fails where the words allow more than one."""
    if question.family == "count":
        return counted(picture, question.text)
    if question.family == "main":  # a thin ring may cover less than a small square: go by the longer side
        return max(picture.objects, key=lambda item: max(np.ptp(line) for line in np.nonzero(item.mask))).name
    if question.family == "box":
        assert picture.boxed is not None
        return picture.objects[picture.boxed].name
    if question.family == "digit":
        return str(WRITTEN[only(picture, "digit").sample])
    named = next(name for name in CLASSES if f" {name}" in question.text)
    if question.family == "existence":
        return "yes" if any(item.name == named for item in picture.objects) else "no"
    item = only(picture, named)
    if question.family == "colour":
        return item.colour
    if question.family == "hop":
        (found,) = (other for other in picture.objects if other.colour == item.colour and other is not item)
        return found.name
    left, right = item.mask[:, :40].any(), item.mask[:, 40:].any()
    assert left != right, "an object on both sides has no side"
    return "left" if left else "right"


def only(picture: Scene, name: str) -> SceneObject:
    """The one object of a class."""
    (item,) = (item for item in picture.objects if item.name == name)
    return item


def counted(picture: Scene, text: str) -> str:
    """How many objects a counting question means."""
    match = re.fullmatch(r"How many (of these )?(\w+ )?are there\?", text)
    assert match is not None, text
    these, noun = bool(match[1]), (match[2] or "").strip()
    meant = picture.objects
    if these:
        assert picture.boxed is not None, "'these' points at a box"
        boxed = picture.objects[picture.boxed]
        assert noun in ("", GROUP_OF[boxed.name]) or PLURALS[noun] == boxed.name
        meant = [item for item in meant if item.name == boxed.name]
        kin = [item for item in picture.objects if GROUP_OF[item.name] == GROUP_OF[boxed.name]]
        assert len(kin) == len(meant), "'these' must mean the same by class and by group"
    elif noun in GROUPS:
        meant = [item for item in meant if item.name in GROUPS[noun]]
    elif noun != "objects":
        meant = [item for item in meant if item.name == PLURALS[noun]]
    places = np.sum([item.mask for item in meant], axis=0)
    assert places.max() == 1, "objects that overlap cannot be counted"
    return str(len(meant))
