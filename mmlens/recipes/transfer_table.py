"""What a ranking of heads is worth elsewhere. Tables of ``mmlens.recipes.head_evaluation``.

1. Per question family, mean theta of a set of prompts: the map that others are held against.
2. Other maps: of other prompts with other masks, for the same family and for every other one; of the same prompts in
   other models.
3. Pearson and Spearman correlation over heads of these mean maps; bootstrap over prompts. Maps of the same prompts are
   resampled together, others apart.
4. Rankings from all of these maps, judged in the first model on held-out prompts of each family: area under the
   faithfulness curve, and how far it lies above or below that of the family's own map, with paired intervals.

Spearman's correlation weighs all heads alike, and the order of heads that carry nothing is noise. Heads of two models
share a number, not a history: nothing says that training from another seed puts the same work in the same place.

Source: ours.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from mmlens.analyses import faithfulness, head_attribution
from mmlens.datasets import scenes
from mmlens.inputs import Prompt
from mmlens.model import HookedVLM
from mmlens.recipes.markdown import markdown_table
from mmlens.result import FaithfulnessResult
from mmlens.result.paired_leads import RANDOM, paired_leads
from mmlens.result.resampling import percentile_interval, resampled_means

Array = np.ndarray
Maps = Float[Array, "_sample layer head"]

FAMILIES = ("main", "colour", "count", "existence")
OWN = "own map"
FAST: Mapping[str, Any] = {"n_heldout": 16, "progress": False}


def maps_of(model: HookedVLM, prompts: Mapping[str, Sequence[Prompt]], seed: int) -> dict[str, Maps]:
    """Family → theta of its prompts.

    Args:
        model: the model.
        prompts: family → prompts with answers.
        seed: of the masks.
    """
    return {
        family: head_attribution(model, list(some), seed=seed, **FAST).theta.values
        for family, some in prompts.items()
    }


def correlations(
    one: Maps, other: Maps, *, together: bool = False, n_boot: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Step 3 for two sets of maps: ``Pearson`` and ``Spearman`` → value and ends of its 95 % interval.

    Args:
        one: maps of some prompts.
        other: maps of others, or of the same in the same order.
        together: whether the prompts are the same, so that both sides are resampled alike.
        n_boot: bootstrap draws over prompts.
        seed: of the draws.
    """
    first, second = (maps.reshape(len(maps), -1) for maps in (one, other))
    draws = resampled_means(first, n_boot, seed), resampled_means(second, n_boot, seed + (not together))
    found = {}
    for name, ranked in (("Pearson", False), ("Spearman", True)):
        value = _correlation(first.mean(axis=0)[None], second.mean(axis=0)[None], ranked)[0]
        low, high = percentile_interval(_correlation(*draws, ranked))
        found[name] = (float(value), float(low), float(high))
    return found


def _correlation(
    one: Float[Array, "draw head"], other: Float[Array, "draw head"], ranked: bool
) -> Float[Array, " draw"]:
    """Row by row."""
    if ranked:
        one, other = stats.rankdata(one, axis=1), stats.rankdata(other, axis=1)
    a, b = (rows - rows.mean(axis=1, keepdims=True) for rows in (one, other))
    return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))


def sources(
    model: HookedVLM, others: Mapping[str, HookedVLM], *, n_fit: int, seed: int
) -> tuple[dict[str, Maps], dict[str, dict[str, Maps]], list[str]]:
    """Steps 1 and 2.

    Args:
        model: the model that is asked.
        others: name → other models of the same layers and heads.
        n_fit: prompts behind each map.
        seed: of scenes and masks.

    Returns:
        Family → maps that others are held against; row → family → maps to hold against them; rows whose maps are of
        the same prompts.
    """
    twice = {
        family: scenes.prompts("attribution", 2 * n_fit, family=family, seed=seed) for family in FAMILIES
    }
    here, there = (
        {f: some[part] for f, some in twice.items()} for part in (slice(n_fit), slice(n_fit, None))
    )
    own, again = maps_of(model, here, seed), maps_of(model, there, seed + 1)
    rows: dict[str, dict[str, Maps]] = {
        f"{family}, other prompts": dict.fromkeys([*FAMILIES], again[family]) for family in FAMILIES
    }
    same = {f"`{name}`, same family": maps_of(one, here, seed + 2) for name, one in others.items()}
    return own, rows | same, list(same)


def judged(
    model: HookedVLM,
    own: Mapping[str, Maps],
    rows: Mapping[str, Mapping[str, Maps]],
    *,
    n_heldout: int,
    n_random: int,
    seed: int,
) -> dict[str, FaithfulnessResult]:
    """Step 4: family → curves of every row's ranking on held-out prompts, its own map's first.

    Args:
        model: the model that is asked.
        own: family → its maps.
        rows: row → family → maps.
        n_heldout: prompts of each family.
        n_random: random rankings.
        seed: of scenes and draws.
    """
    found = {}
    for family, maps in own.items():
        scores = {OWN: maps.mean(axis=0)}
        scores |= {name: by_family[family].mean(axis=0) for name, by_family in rows.items()}
        prompts = scenes.prompts("heldout", n_heldout, family=family, seed=seed)
        found[family] = faithfulness(model, prompts, scores, n_random=n_random, seed=seed, progress=False)
    return found


def correlation_table(
    own: Mapping[str, Maps],
    rows: Mapping[str, Mapping[str, Maps]],
    same: Sequence[str],
    *,
    measure: str,
    n_boot: int,
    seed: int,
) -> str:
    """Step 3 in Markdown: rows are where a map comes from, columns the family it is held against.

    Args:
        own: family → its maps.
        rows: row → family → maps.
        same: rows of the same prompts.
        measure: ``Pearson`` or ``Spearman``.
        n_boot: bootstrap draws over prompts.
        seed: of the draws.
    """
    cells = []
    for name, by_family in rows.items():
        asked: dict[str, Any] = {"together": name in same, "n_boot": n_boot, "seed": seed}
        found = [correlations(maps, by_family[family], **asked)[measure] for family, maps in own.items()]
        cells.append([name, *("{:.2f} [{:.2f}, {:.2f}]".format(*one).replace("-", "−") for one in found)])
    return markdown_table(["map of", *own], cells)


def area_table(found: Mapping[str, FaithfulnessResult], *, n_boot: int, seed: int) -> str:
    """Step 4 in Markdown: area, and what it lacks or has more than the own map's. Bold: the interval excludes 0.

    Args:
        found: family → curves, the own map's first.
        n_boot: bootstrap draws over prompts.
        seed: of the draws.
    """
    columns = {
        family: paired_leads(result, n_boot=n_boot, seed=seed).to_dict("records")
        for family, result in found.items()
    }
    names = [str(row["method"]) for row in next(iter(columns.values()))]
    cells = []
    for i, name in enumerate(names):
        cells.append([name, *(_area(rows[i], own=not i) for rows in columns.values())])
    return markdown_table(["ranking from", *columns], cells)


def _area(row: Mapping[Any, Any], *, own: bool) -> str:
    if own:
        return f"{row['value']:.3f}"
    change = tuple(0.0 - row[name] for name in ("lead", "upper", "lower"))
    text = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*change).replace("-", "−")
    return f"{row['value']:.3f}; {f'**{text}**' if row['decided'] else text}"


def transfer_tables(
    name: str,
    others: Sequence[str],
    *,
    n_fit: int,
    n_heldout: int,
    n_random: int,
    n_boot: int = 1000,
    seed: int = 0,
) -> str:
    """Steps 1 to 4 in Markdown.

    Args:
        name: the model that is asked.
        others: other models of the same layers and heads.
        n_fit: prompts behind each map.
        n_heldout: prompts of each family that rankings are judged on.
        n_random: random rankings.
        n_boot: bootstrap draws over prompts.
        seed: of scenes, masks and draws.
    """
    model = HookedVLM.from_pretrained(name)
    own, rows, same = sources(
        model, {one: HookedVLM.from_pretrained(one) for one in others}, n_fit=n_fit, seed=seed
    )
    parts = [
        f"{measure} correlation over heads of mean theta, {n_fit} prompts a map [95 %]:\n\n"
        + correlation_table(own, rows, same, measure=measure, n_boot=n_boot, seed=seed)
        for measure in ("Pearson", "Spearman")
    ]
    found = judged(model, own, rows, n_heldout=n_heldout, n_random=n_random, seed=seed)
    title = (
        f"Area under the faithfulness curve in `{name}` on {n_heldout} held-out prompts of each family; after the "
        f"semicolon, minus that of the family's own map [95 %]. Last row: {RANDOM}, matched to the own map's layers"
    )
    return "\n\n".join((*parts, f"{title}:\n\n{area_table(found, n_boot=n_boot, seed=seed)}"))
