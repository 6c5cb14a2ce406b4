"""Are head maps alike within a class, and is it the class or its looks? Tables of ``mmlens.recipes.head_evaluation``.

1. Classes: head attribution of as many prompts of each answer. Mean cosine of the maps of two prompts with the same
   answer, minus that of two with different answers; bootstrap over prompts within each class, and a permutation test
   that assigns the answers anew. Pairs of a prompt with its own copy are left out.
2. Looks: head attribution of scenes, of each scene restyled (same objects and answer; other texture and background,
   other palette, or other places), and of each scene with another main object in the same style (same colour, texture,
   place, background and noise). Cosines with the scene's own map; bootstrap over scenes, which are the pairs' units.
3. Picture or word? A map explains the logit of one word, and two objects have two words. So also the map of the same
   picture for the other object's word, and of the other object's picture for the same word.
4. All of this also of the maps' deviations from the mean over all prompts: heads that every prompt uses make any two
   maps alike.

Source: similarity of attributions within classes, and the same object restyled against another object in the same
style, Kim et al. 2025 (arXiv 2509.17588); scenes, step 3, deviations, intervals and the permutation test are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
from jaxtyping import Float

from mmlens.analyses import head_attribution
from mmlens.datasets import scenes
from mmlens.errors import DesignError
from mmlens.inputs import Prompt
from mmlens.model import HookedVLM
from mmlens.recipes.markdown import markdown_table
from mmlens.result.resampling import percentile_interval, resampled_means

Array = np.ndarray

FAMILIES = ("main", "colour", "count")
MOST = 3000
"""Prompts looked through for classes, at most."""
AGAIN, OTHER_SCENE = "same scene, other masks", "another scene, another object"
OTHER_WORD, OTHER_PICTURE = (
    "same scene, that object's word",
    "another object, same style, first object's word",
)
VARIANTS = {
    "texture": "same object, other texture and background",
    "palette": "same object, other palette",
    "position": "same object, other places",
    "object": "another object, same style",
}
CONTRASTS = (
    (VARIANTS["texture"], VARIANTS["object"]),
    (VARIANTS["palette"], VARIANTS["object"]),
    (VARIANTS["position"], VARIANTS["object"]),
    (VARIANTS["object"], OTHER_SCENE),
)
"""Pairs of labels whose difference is reported."""
FAST: Mapping[str, Any] = {"n_heldout": 16, "progress": False}


@dataclass(frozen=True, kw_only=True)
class ClassGap:
    """How much more alike maps are within classes than between.

    Attributes:
        within: mean cosine of two prompts of one class.
        between: of two classes.
        gap: within minus between.
        interval: 95 % bootstrap interval of the gap, over prompts within each class.
        p_value: one-sided permutation p-value of the gap.
    """

    within: float
    between: float
    gap: float
    interval: tuple[float, float]
    p_value: float


def class_gap(
    maps: Float[Array, "sample head"], labels: Sequence[str], *, n_boot: int = 1000, seed: int = 0
) -> ClassGap:
    """Step 1 for given maps.

    Args:
        maps: one row per prompt, none of them zero.
        labels: class of each.
        n_boot: bootstrap draws, and permutations.
        seed: of both.

    Raises:
        DesignError: fewer than two classes, or a class of one prompt.
    """
    names, member = np.unique(np.array(labels), return_inverse=True)
    if len(names) < 2 or np.bincount(member).min() < 2:
        raise DesignError("a gap needs two classes or more of two prompts or more each.")
    rng, gram = np.random.default_rng(seed), _cosines(maps, maps)
    one_hot = np.eye(len(names))[member]
    weights = np.zeros((n_boot, len(member)))
    for k in range(len(names)):
        rows = np.flatnonzero(member == k)
        drawn = rng.integers(len(rows), size=(n_boot, len(rows)))
        while (copies := np.flatnonzero(np.ptp(drawn, axis=1) == 0)).size:  # no pair in the class: draw again
            drawn[copies] = rng.integers(len(rows), size=(copies.size, len(rows)))
        weights[:, rows] = np.stack([np.bincount(row, minlength=len(rows)) for row in drawn])
    within, between = _means(gram, one_hot[None])
    gap = float((within - between)[0])
    draws = np.subtract(*_means(gram, weights[..., None] * one_hot))
    shuffled = rng.permuted(np.tile(member, (n_boot, 1)), axis=1)
    by_chance = np.subtract(*_means(gram, np.eye(len(names))[shuffled]))
    low, high = percentile_interval(draws)
    p_value = (1 + int((by_chance >= gap - 1e-9).sum())) / (1 + n_boot)
    return ClassGap(
        within=float(within[0]), between=float(between[0]), gap=gap, interval=(low, high), p_value=p_value
    )


def _cosines(one: Float[Array, "a head"], other: Float[Array, "b head"]) -> Float[Array, "a b"]:
    return _unit(one) @ _unit(other).T


def _unit(maps: Float[Array, "sample head"]) -> Float[Array, "sample head"]:
    return maps / np.linalg.norm(maps, axis=-1, keepdims=True)


def _means(
    gram: Float[Array, "sample sample"], weights: Float[Array, "draw sample cls"]
) -> tuple[Float[Array, " draw"], Float[Array, " draw"]]:
    """Mean cosine within and between classes when each prompt counts as often as its weight says."""
    together = np.einsum("ij,djk,dik->d", gram, weights, weights, optimize=True)
    whole = weights.sum(axis=2)
    everything, size = np.einsum("ij,dj,di->d", gram, whole, whole, optimize=True), weights.sum(axis=1)
    own, n_own = (whole**2) @ np.diagonal(gram), (whole**2).sum(axis=1)
    n_together = (size**2).sum(axis=1)
    within = (together - own) / (n_together - n_own)
    return within, (everything - together) / (size.sum(axis=1) ** 2 - n_together)


def prompts_by_class(family: str, per_class: int, *, seed: int = 0) -> list[Prompt]:
    """As many prompts of every answer of a family, of scenes that no other answer uses.

    Args:
        family: a question family.
        per_class: prompts of each answer.
        seed: of the scenes.

    Raises:
        DesignError: some answer is too rare.
    """
    found: dict[str, list[Prompt]] = {answer: [] for answer in scenes.ANSWERS[family]}
    n = 4 * per_class * len(found)
    for prompt in scenes.prompts("attribution", min(n, MOST), family=family, seed=seed):
        same = found[str(prompt.answer)]
        if len(same) < per_class:
            same.append(prompt)
    if short := [answer for answer, some in found.items() if len(some) < per_class]:
        raise DesignError(
            f"too few {family!r} prompts with the answer {', '.join(short)}; ask for fewer a class."
        )
    return [prompt for some in found.values() for prompt in some]


def class_table(
    names: Sequence[str],
    *,
    per_class: int,
    families: Sequence[str] = FAMILIES,
    n_boot: int = 1000,
    seed: int = 0,
) -> str:
    """Step 1 in Markdown: a row per model and family.

    Args:
        names: models.
        per_class: prompts of each answer.
        families: question families.
        n_boot: bootstrap draws, and permutations.
        seed: of scenes, masks and draws.
    """
    rows = []
    for name in names:
        model = HookedVLM.from_pretrained(name)
        for family in families:
            prompts = prompts_by_class(family, per_class, seed=seed)
            labels, maps = [str(prompt.answer) for prompt in prompts], _maps(model, prompts, seed)
            plain = class_gap(maps, labels, n_boot=n_boot, seed=seed)
            apart = class_gap(maps - maps.mean(axis=0), labels, n_boot=n_boot, seed=seed)
            row = [f"`{name}`", family, f"{len(set(labels))} × {per_class}"]
            row += [f"{value:.3f}".replace("-", "−") for value in (plain.within, plain.between)]
            rows.append([*row, *(_gap(one) for one in (plain, apart))])
    header = [
        "model",
        "family",
        "classes × prompts",
        "within",
        "between",
        "gap [95 %], p",
        "gap of deviations",
    ]
    return f"Maps within and between classes (the answers), mean cosines:\n\n{markdown_table(header, rows)}"


def _gap(found: ClassGap) -> str:
    low, high = found.interval
    return f"{found.gap:+.3f} [{low:+.3f}, {high:+.3f}], p = {found.p_value:.2g}".replace("-", "−")


def _maps(model: HookedVLM, prompts: Sequence[Prompt], seed: int) -> Float[Array, "sample head"]:
    theta = head_attribution(model, list(prompts), seed=seed, **FAST).theta.values
    return theta.reshape(len(theta), -1)


# --- looks


def styled_scenes(n: int, *, seed: int = 0) -> tuple[list[Prompt], dict[str, list[Prompt]]]:
    """Step 2: scenes with a main object, and each of them altered in every way of ``VARIANTS``.

    Args:
        n: scenes.
        seed: of the scenes.

    Returns:
        The scenes, and change → the same scenes altered.
    """
    plain: list[Prompt] = []
    altered: dict[str, list[Prompt]] = {change: [] for change in VARIANTS}
    for index in count():
        if len(plain) == n:
            break
        pairs = [
            scenes.pair("heldout", index, change=change, family="main", seed=seed) for change in VARIANTS
        ]
        made = [pair.prompts() for pair in pairs if pair is not None]
        if len(made) == len(VARIANTS):
            plain.append(made[0][0])
            for some, (_, other) in zip(altered.values(), made, strict=True):
                some.append(other)
    return plain, altered


def other_words(plain: Sequence[Prompt], other: Sequence[Prompt]) -> dict[str, list[Prompt]]:
    """Step 3: both pictures, each with the other's answer.

    Args:
        plain: scenes.
        other: the same scenes with another object.
    """
    pairs = list(zip(plain, other, strict=True))
    return {
        OTHER_WORD: [replace(one, answer=two.answer, foil=None) for one, two in pairs],
        OTHER_PICTURE: [replace(two, answer=one.answer, foil=None) for one, two in pairs],
    }


def alike(
    maps: Float[Array, "sample head"],
    others: Mapping[str, Float[Array, "sample head"]],
    answers: Sequence[str],
) -> dict[str, Float[Array, " sample"]]:
    """Cosine of each scene's map with that of every variant, and with that of the next scene with another answer.

    Raises:
        DesignError: all scenes have one answer.
    """
    n, names = len(answers), np.array(answers)
    if len(set(answers)) < 2:
        raise DesignError("all scenes show the same class; take more of them.")
    turns = [next(step for step in range(1, n) if names[(i + step) % n] != names[i]) for i in range(n)]
    partner = (np.arange(n) + turns) % n
    every = {**others, OTHER_SCENE: maps[partner]}
    return {name: (_unit(maps) * _unit(one)).sum(axis=1) for name, one in every.items()}


def appearance_table(names: Sequence[str], *, n: int, n_boot: int = 1000, seed: int = 0) -> str:
    """Steps 2 and 3 in Markdown: per model, cosines, and below them the differences that the claim is about.

    Args:
        names: models.
        n: scenes.
        n_boot: bootstrap draws over scenes.
        seed: of scenes, masks and draws.
    """
    plain, altered = styled_scenes(n, seed=seed)
    asked = {VARIANTS[change]: some for change, some in altered.items()} | other_words(
        plain, altered["object"]
    )
    answers, rows = [str(prompt.answer) for prompt in plain], []
    for name in names:
        model = HookedVLM.from_pretrained(name)
        maps = _maps(model, plain, seed)
        others = {AGAIN: _maps(model, plain, seed + 1)}
        others |= {label: _maps(model, some, seed + 2) for label, some in asked.items()}
        mean = maps.mean(axis=0)
        apart = {label: one - mean for label, one in others.items()}
        both = alike(maps, others, answers), alike(maps - mean, apart, answers)
        for label in both[0]:
            rows.append([f"`{name}`", label, *(_mean(found[label], n_boot, seed) for found in both)])
        for one, other in CONTRASTS:
            cells = [_mean(found[one] - found[other], n_boot, seed, bold=True) for found in both]
            rows.append([f"`{name}`", f"{one} − {other}", *cells])
    title = f"Cosine with the map of the scene as it is, {n} scenes of the family main"
    return f"{title}:\n\n{markdown_table(['model', 'map of', 'maps [95 %]', 'deviations [95 %]'], rows)}"


def _mean(values: Float[Array, " sample"], n_boot: int, seed: int, *, bold: bool = False) -> str:
    low, high = percentile_interval(resampled_means(values, n_boot, seed))
    text = f"{values.mean():.3f} [{low:.3f}, {high:.3f}]".replace("-", "−")
    return f"**{text}**" if bold and (low > 0 or high < 0) else text
