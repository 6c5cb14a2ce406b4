"""Map similarity: are the head maps of one question family more alike than those of two?

1. Flatten each sample's map over layers and heads, and scale it to length 1.
2. Cosine between every two samples. Within a group its mean is taken over pairs of two different samples,
   between two groups over all pairs.
3. Gap of two groups: the mean of their cosines within, minus the cosine between them. It is half the unbiased
   squared maximum mean discrepancy with the cosine as kernel (Gretton et al. 2012), so it may fall below 0.
4. Bootstrap: samples are drawn with replacement within each group; the same draws serve every cosine and gap.
   Where a sample was drawn twice, the pair of it and its copy, whose cosine is 1 by construction, is left out
   of sum and count alike. A draw of nothing but copies of one sample has no pair, and is drawn again. Two
   samples have only one draw then, which is no evidence of anything: intervals that involve a group of two are
   the whole range, [-1, 1] for a cosine and [-2, 2] for a gap.
5. Permutation test: the samples of two groups are assigned to them anew at random; p = (1 + how many such gaps
   are at least as large) / (1 + how many were drawn). With few samples many assignments are the same, and p
   cannot fall far.

The samples are the units of evidence, so they must be independent: give the groups different images. One
image in two groups makes the groups more alike than they are.

Source: similarity of attributions across images within and between classes, Kim et al. 2025 (arXiv 2509.17588);
cosine over all heads, gap, intervals and permutation test are ours.
"""

import time
from collections.abc import Mapping
from itertools import combinations, combinations_with_replacement

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float

from mmlens.analyses.faithfulness import Scores
from mmlens.errors import ConfigError, DesignError, NonFiniteError, ShapeError
from mmlens.result import AttributionResult, HeadResult, HeadScoreResult, MapSimilarityResult, RunInfo
from mmlens.result.resampling import percentile_interval

Array = np.ndarray

_ROUNDING = 1e-9
"""Gaps that differ by less count as equal."""


def map_similarity(
    results: Mapping[str, Scores], *, n_boot: int = 1000, n_permutations: int = 1000, seed: int = 0
) -> MapSimilarityResult:
    """How alike head maps are within each group of samples and between groups.

    Args:
        results: group (a question family, say) -> result or array [sample, layer, head] of at least two
            samples. Maps may have any unit: a cosine does not see their scale.
        n_boot: bootstrap draws over samples.
        n_permutations: random assignments of samples to groups, per pair of groups.
        seed: of both; a group's draws depend on its place in ``results`` and its number of samples only.

    Returns:
        Cosines [group, group_other] without unit, 1 = the same map; per pair of groups the gap, positive =
        more alike within than between, with interval and one-sided p-value.

    Raises:
        DesignError: there is no group, a group has fewer than two samples, or a map is zero everywhere.
        ShapeError: maps are not [sample, layer, head], or those of two groups differ in layers or heads.
        NonFiniteError: a score is NaN or infinite.
        ConfigError: ``n_boot`` or ``n_permutations`` is not positive.
    """
    started = time.perf_counter()
    if min(n_boot, n_permutations) < 1:
        raise ConfigError(
            f"n_boot={n_boot} and n_permutations={n_permutations} must be at least 1, better 1000."
        )
    directions = _directions(results)  # 1
    units, names = list(directions.values()), np.array(list(directions), dtype=object)
    counts = np.array([len(one) for one in units])
    observed = _mean_cosines(units, [np.ones((1, n)) for n in counts])  # 2
    draws = _mean_cosines(units, [_multiplicities(n, n_boot, seed, i) for i, n in enumerate(counts.tolist())])
    pairs = list(combinations(range(len(units)), 2))
    p_values = [_p_value(units[i], units[j], n_permutations, [seed, 1, i, j]) for i, j in pairs]  # 5
    few = counts == 2
    data = xr.Dataset(
        {
            "cosine": (("group", "group_other"), observed[0]),
            "cosine_interval": (
                ("group", "group_other", "bound"),
                _interval(draws, few[:, None] | few, 1.0),  # 4
            ),
            "n": ("group", counts),
            "first": ("pair", names[[i for i, _ in pairs]]),
            "second": ("pair", names[[j for _, j in pairs]]),
            "gap": ("pair", _gaps(observed)[0]),  # 3
            "gap_interval": (
                ("pair", "bound"),
                _interval(_gaps(draws), np.array([few[i] or few[j] for i, j in pairs], dtype=bool), 2.0),
            ),
            "p_value": ("pair", np.array(p_values, dtype=float)),
        },
        coords={"group": names, "group_other": names},
        attrs={"score": ", ".join(dict.fromkeys(_score(one) for one in results.values()))},
    )
    settings = {"n_boot": n_boot, "n_permutations": n_permutations}
    info = _info(results, settings, seed, time.perf_counter() - started)
    return MapSimilarityResult(data=data, info=info)


# --- maps


def _directions(results: Mapping[str, Scores]) -> dict[str, Float[Array, "sample head"]]:
    """Every group's maps as rows of length 1 over all heads."""
    if not results:
        raise DesignError("no group was given; name at least one: {'colour': result}.")
    found: dict[str, Array] = {}
    shapes: dict[tuple[int, ...], str] = {}
    for name, scores in results.items():
        maps, labels = _maps(name, scores)
        first = shapes.setdefault(maps.shape[1:], name)
        if len(shapes) > 1:
            other = next(iter(shapes))
            raise ShapeError(
                f"maps of {first!r} have [layer, head] = {list(maps.shape[1:])}, those of {shapes[other]!r} "
                f"{list(other)}; only maps over the same heads can be compared."
            )
        largest = np.abs(maps).max(axis=(1, 2), keepdims=True)
        if (zero := np.flatnonzero(largest == 0)).size:
            raise DesignError(
                f"the map of sample {labels[zero[0]]} of {name!r} is zero everywhere ({zero.size} of "
                f"{len(maps)} are), so it has no direction. Leave such samples out."
            )
        rows = (maps / largest).reshape(len(maps), -1)  # no square of it can vanish or overflow
        found[name] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def _maps(name: str, scores: Scores) -> tuple[Float[Array, "sample layer head"], list[str]]:
    """Maps of one group, and the labels of its samples."""
    if isinstance(scores, HeadResult):
        scores = scores.data[scores.main]
    if isinstance(scores, xr.DataArray) and {"sample", "layer", "head"} == set(scores.dims):
        scores = scores.transpose("sample", "layer", "head")
    values = np.asarray(scores.detach().cpu() if isinstance(scores, torch.Tensor) else scores)
    if values.ndim != 3 or 0 in values.shape[1:]:
        raise ShapeError(f"maps of {name!r} have shape {list(values.shape)}; expected [sample, layer, head].")
    if len(values) < 2:
        raise DesignError(
            f"{name!r} has {len(values)} sample(s); at least two are needed for a cosine within it, better 20."
        )
    labels = list(range(len(values)))
    if isinstance(scores, xr.DataArray) and "sample" in scores.coords:
        labels = scores["sample"].values.tolist()
    values = values.astype(np.float64)
    if (bad := np.argwhere(~np.isfinite(values))).size:
        raise NonFiniteError(
            f"the map of sample {labels[bad[0][0]]} of {name!r} holds NaN or infinity (the first: layer "
            f"{bad[0][1]}, head {bad[0][2]}). Find the run that made it."
        )
    return values, [str(label) for label in labels]


# --- cosines


def _mean_cosines(
    units: list[Float[Array, "_sample head"]], weights: list[Float[Array, "draw _sample"]]
) -> Float[Array, "draw group group"]:
    """Mean cosine of every two groups when each sample counts as often as its weight says.

    Pairs of a sample with itself are left out of sum and count: of its weight w, w² pairs.
    """
    n_groups, n_draws = len(units), len(weights[0])
    found = np.empty((n_draws, n_groups, n_groups))
    for i, j in combinations_with_replacement(range(n_groups), 2):
        gram = np.clip(units[i] @ units[j].T, -1.0, 1.0)
        total = (weights[i] @ gram * weights[j]).sum(axis=1)
        count = weights[i].sum(axis=1) * weights[j].sum(axis=1)
        if i == j:
            own = weights[i] ** 2
            total, count = total - own @ np.diagonal(gram), count - own.sum(axis=1)
        found[:, i, j] = found[:, j, i] = np.clip(total / count, -1.0, 1.0)
    return found


def _gaps(cosines: Float[Array, "draw group group"]) -> Float[Array, "draw pair"]:
    """Mean cosine within two groups minus that between them, for every two groups in order."""
    first, second = np.triu_indices(cosines.shape[1], k=1)
    within = np.diagonal(cosines, axis1=1, axis2=2)
    return (within[:, first] + within[:, second]) / 2 - cosines[:, first, second]


# --- how sure


def _multiplicities(n: int, n_boot: int, seed: int, group: int) -> Float[Array, "draw sample"]:
    """How often each sample of a group was drawn; every draw holds two different samples or more."""
    rng = np.random.default_rng([seed, 0, group])
    index = rng.integers(n, size=(n_boot, n))
    while (same := np.flatnonzero(np.ptp(index, axis=1) == 0)).size:
        index[same] = rng.integers(n, size=(same.size, n))
    return np.stack([np.bincount(row, minlength=n) for row in index]).astype(float)


def _interval(
    draws: Float[Array, "draw *rest"], unknown: Bool[Array, "*rest"], limit: float
) -> Float[Array, "*rest bound"]:
    """95 % of the draws; from ``-limit`` to ``limit`` where nothing is known."""
    return np.where(unknown[..., None], [-limit, limit], percentile_interval(draws))


def _p_value(
    first: Float[Array, "_first head"], second: Float[Array, "_second head"], n: int, key: list[int]
) -> float:
    """One-sided permutation p-value of the gap between two groups."""
    rows = np.concatenate([first, second])
    gram, size = np.clip(rows @ rows.T, -1.0, 1.0), len(first)
    places = np.random.default_rng(key).permuted(np.tile(np.arange(len(rows)), (n, 1)), axis=1)
    observed = _gap_of(gram, (np.arange(len(rows)) < size)[None])
    hits = int((_gap_of(gram, places < size) >= observed - _ROUNDING).sum())
    return (1 + hits) / (1 + n)


def _gap_of(gram: Float[Array, "sample sample"], inside: Bool[Array, "draw sample"]) -> Float[Array, " draw"]:
    """Gap between the samples inside and those outside."""
    a, b = inside.astype(float), (~inside).astype(float)
    to_a, to_b, own = a @ gram, b @ gram, np.diagonal(gram)
    n_a, n_b = a.sum(axis=1), b.sum(axis=1)
    within_a = ((to_a * a).sum(axis=1) - a @ own) / (n_a * (n_a - 1))
    within_b = ((to_b * b).sum(axis=1) - b @ own) / (n_b * (n_b - 1))
    return (within_a + within_b) / 2 - (to_a * b).sum(axis=1) / (n_a * n_b)


# --- the record


def _score(scores: Scores) -> str:
    """What a group's maps hold, in words."""
    if isinstance(scores, AttributionResult):
        return f"head attribution of the {scores.data.attrs['metric']}"
    return scores.data.attrs["method"] if isinstance(scores, HeadScoreResult) else "given scores"


def _info(results: Mapping[str, Scores], settings: dict[str, int], seed: int, seconds: float) -> RunInfo:
    """Provenance: that of the results, as far as there is one."""
    infos = {name: one.info for name, one in results.items() if isinstance(one, HeadResult)}

    def joined(field: str) -> str:
        known = [str(getattr(info, field)) for info in infos.values()]
        unknown = ["unknown"] * (len(infos) < len(results))
        return ", ".join(dict.fromkeys(known + unknown))

    return RunInfo.collect(
        model_id=joined("model_id"),
        weight_fingerprint=joined("weight_fingerprint"),
        dtype=joined("dtype"),
        device=joined("device"),
        seed=seed,
        image_sha256=[one for info in infos.values() for one in info.image_sha256],
        prompts=[one for info in infos.values() for one in info.prompts],
        settings={**settings, "groups": list(results)},
        seconds=seconds,
    )
