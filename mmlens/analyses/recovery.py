"""Recovery: how well any head ranking or attribution map finds the heads that a planted model really uses.

1. Take the exact value of every head, and the heads in use, from the planted truth.
2. Average each method's scores over samples: one number per head.
3. Heads in use against all others: area under the ROC curve, average precision, share of the k heads in use
   among the top k.
4. All heads: Pearson and Spearman correlation with the exact values, and root mean square error where the
   scores are in their unit.
5. Where a method scored several samples: 95 % bootstrap intervals over them. The truth stays as it is.

Heads rank by falling score, sign included, as everywhere. Heads with equal scores share their place: a
constant map has AUROC 0.5, and recovers what drawing heads at random does.

Source: planted circuits as ground truth as in Tracr (arXiv 2301.05062) and InterpBench (arXiv 2407.14494);
exact game values in place of a yes-or-no circuit are ours.
"""

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from mmlens.analyses.faithfulness import Scores
from mmlens.errors import DesignError, NonFiniteError, ShapeError
from mmlens.result import (
    AttributionResult,
    HeadResult,
    HeadScoreResult,
    PlantedTruth,
    PooledAttributionResult,
    RecoveryResult,
    RunInfo,
)
from mmlens.result.planted_truth import Index
from mmlens.result.resampling import percentile_interval, resampled_means

Array = np.ndarray

_MERITS = ("auroc", "average_precision", "recovered_at_k", "correlation", "rank_correlation", "error")


def recovery(
    scores: Scores | Mapping[str, Scores],
    truth: PlantedTruth,
    *,
    family: str,
    baseline: str = "mean_image_tokens",
    index: Index = "shapley",
    n_boot: int = 1000,
    seed: int = 0,
) -> RecoveryResult:
    """Judges head scores by what is exactly known of a planted model.

    Args:
        scores: a result, an array [layer, head] or [sample, layer, head], or several by the name of their
            method. Of samples the mean is judged. An array counts as being in the metric's unit only if it is
            a DataArray whose ``attrs["unit"]`` says so.
        truth: the planted model's truth.
        family: the question family that the scores are about.
        baseline: what closed heads read, in the truth.
        index: exact values to compare with: ``shapley``, ``banzhaf`` (what regression on head masks with keep
            0.5 estimates), ``removal`` (what single-head ablation measures) or ``addition``.
        n_boot: bootstrap draws over the samples of the scores.
        seed: of the bootstrap.

    Returns:
        AUROC, average precision, recovery at k and correlations without unit (1 is best), the error in the
        metric's unit (0 is best); intervals where a method scored several samples.

    Raises:
        ResultError: the truth has no such family or baseline.
        ConfigError: ``index`` or ``n_boot`` is not possible.
        DesignError: no scores were given, or the family uses no head, or all.
        ShapeError: scores are not one per head of the truth's model.
        NonFiniteError: a score is NaN or infinite.
    """
    started = time.perf_counter()
    named = _named(scores)
    exact = truth.exact(family, baseline=baseline, index=index)  # 1
    used = truth.in_use(family, baseline=baseline)
    _check_use(used.values, family, baseline)
    judged = []
    for name, one in named.items():
        maps = _maps(name, one, truth.shape)
        judged.append(_judge(maps, exact.values.ravel(), used.values.ravel(), n_boot, seed))  # 2 to 5
    comparable = np.array([_comparable(one, truth) for one in named.values()])
    data = _dataset(judged, comparable, list(named))
    data = data.assign(exact_value=exact.variable, in_use=used.astype(int).variable)
    data.attrs = {"family": family, "baseline": baseline, "index": index}
    data.attrs |= {name: truth.data.attrs[name] for name in ("metric", "unit")}
    settings = {"family": family, "baseline": baseline, "index": index, "n_boot": n_boot}
    settings["scores_of_other_weights"] = _of_other_weights(named, truth)
    info = RunInfo.collect(
        model_id=truth.info.model_id,
        weight_fingerprint=truth.info.weight_fingerprint,
        dtype=truth.info.dtype,
        device=truth.info.device,
        revision=truth.info.revision,
        seed=seed,
        settings=settings,
        seconds=time.perf_counter() - started,
    )
    return RecoveryResult(data=data, info=info)


def _named(scores: Scores | Mapping[str, Scores]) -> dict[str, Scores]:
    """Scores by method; one alone is called as it calls itself."""
    if isinstance(scores, Mapping):
        if not scores:
            raise DesignError("no scores were given; name at least one method: {'my method': scores}.")
        return dict(scores)
    if isinstance(scores, AttributionResult):
        return {"head attribution": scores}
    if isinstance(scores, PooledAttributionResult):
        return {"pooled head attribution": scores}
    return {scores.data.attrs["method"] if isinstance(scores, HeadScoreResult) else "scores": scores}


def _check_use(used: Bool[Array, "layer head"], family: str, baseline: str) -> None:
    if not used.any() or used.all():
        raise DesignError(
            f"{family} uses {'no head' if not used.any() else 'every head'} of this model under baseline "
            f"{baseline}: heads in use cannot be told from others. Choose another family or baseline."
        )


def _maps(name: str, scores: Scores, shape: tuple[int, int]) -> Float[Array, "sample head"]:
    """Scores of one method as rows over all heads; a single map is one row."""
    if isinstance(scores, HeadResult):
        scores = scores.data[scores.main]
    if isinstance(scores, xr.DataArray) and {"layer", "head"} <= set(scores.dims):
        scores = scores.transpose(..., "layer", "head")
    values = np.asarray(scores.detach().cpu() if isinstance(scores, torch.Tensor) else scores)
    if values.ndim not in (2, 3) or values.shape[-2:] != shape or not values.size:
        raise ShapeError(
            f"scores of {name!r} have shape {list(values.shape)}; expected [layer, head] = {list(shape)}, the "
            "heads of the planted model, or one such map per sample."
        )
    if not np.isfinite(values).all():
        raise NonFiniteError(f"scores of {name!r} hold NaN or infinity, which have no rank.")
    return values.astype(np.float64).reshape(-1, values.shape[-2] * values.shape[-1])


def _comparable(scores: Scores, truth: PlantedTruth) -> bool:
    """Whether scores say that they are in the unit, and of the metric if they name one, of the truth."""
    if isinstance(scores, HeadResult):
        unit = scores.data.attrs["unit"]
        metric = scores.data.attrs.get("metric", scores.info.settings.get("metric"))
    elif isinstance(scores, xr.DataArray):
        unit, metric = scores.attrs.get("unit"), scores.attrs.get("metric")
    else:
        return False
    theirs = truth.data.attrs
    return unit == theirs["unit"] and metric in (None, theirs["metric"])


def _of_other_weights(named: Mapping[str, Scores], truth: PlantedTruth) -> list[str]:
    """Methods whose scores come from a model with other weights (a control, or a mistake)."""
    mine = truth.info.weight_fingerprint
    return [
        name
        for name, one in named.items()
        if isinstance(one, HeadResult) and one.info.weight_fingerprint != mine
    ]


def _judge(
    maps: Float[Array, "sample head"],
    exact: Float[Array, " head"],
    used: Bool[Array, " head"],
    n_boot: int,
    seed: int,
) -> dict[str, Array]:
    """Figures of merit of one method, each with its interval."""
    merits = _merits(maps.mean(axis=0, keepdims=True), exact, used)
    found: dict[str, Array] = {name: value.reshape(()) for name, value in merits.items()}
    draws = _merits(resampled_means(maps, n_boot, seed), exact, used) if len(maps) > 1 else {}
    for name in _MERITS:
        found[f"{name}_interval"] = percentile_interval(draws[name]) if draws else np.full(2, np.nan)
    return found | {"n_samples": np.array(len(maps))}


def _dataset(judged: Sequence[Mapping[str, Array]], comparable: Array, names: Sequence[str]) -> xr.Dataset:
    """All methods together; what is known of none of them is left out."""
    found = {name: np.stack([one[name] for one in judged]) for name in judged[0]}
    found["error"] = np.where(comparable, found["error"], np.nan)
    found["error_interval"] = np.where(comparable[:, None], found["error_interval"], np.nan)
    found["exact_recovery"] = found["exact_recovery"].astype(int)
    optional = {"error"} | {f"{name}_interval" for name in _MERITS}
    axes = ("method", "bound")
    return xr.Dataset(
        {
            name: (axes[: values.ndim], values)
            for name, values in found.items()
            if name not in optional or not np.isnan(values).all()
        }
        | {"comparable": ("method", comparable.astype(int))},
        coords={"method": np.array(names, dtype=object)},
    )


def _merits(
    scores: Float[Array, "map head"], exact: Float[Array, " head"], used: Bool[Array, " head"]
) -> dict[str, Float[Array, " map"]]:
    """Figures of merit of every map; ``sklearn.metrics`` gives the same, one map at a time."""
    return {
        "auroc": _auroc(scores, used),
        "average_precision": _average_precision(scores, used),
        "recovered_at_k": _recovered(scores, used),
        "exact_recovery": (scores[:, used].min(1) > scores[:, ~used].max(1)).astype(float),
        "correlation": _correlation(scores, exact),
        "rank_correlation": _correlation(rankdata(scores, axis=1), rankdata(exact)),
        "error": np.sqrt(((scores - exact) ** 2).mean(axis=1)),
    }


def _auroc(scores: Float[Array, "map head"], used: Bool[Array, " head"]) -> Float[Array, " map"]:
    """Mann and Whitney's U as a share; equal scores count half."""
    k = int(used.sum())
    above = rankdata(scores, axis=1)[:, used].sum(axis=1) - k * (k + 1) / 2
    return above / (k * (len(used) - k))


def _average_precision(scores: Float[Array, "map head"], used: Bool[Array, " head"]) -> Float[Array, " map"]:
    """At each head in use, the share of heads in use among those that score no less; mean over them."""
    chosen = rankdata(-scores, method="max", axis=1)[:, used]
    right = rankdata(-scores[:, used], method="max", axis=1)
    return (right / chosen).mean(axis=1)


def _recovered(scores: Float[Array, "map head"], used: Bool[Array, " head"]) -> Float[Array, " map"]:
    """Share of the k heads in use among the top k, expected over random orders of equal scores."""
    k = int(used.sum())
    least = np.sort(scores, axis=1)[:, -k, None]
    above, level = scores > least, scores == least
    places = (k - above.sum(axis=1)) / level.sum(axis=1)  # share of the heads at the threshold that fit
    return (above[:, used].sum(axis=1) + places * level[:, used].sum(axis=1)) / k


def _correlation(scores: Float[Array, "map head"], exact: Float[Array, " head"]) -> Float[Array, " map"]:
    """Pearson correlation of every map with the exact values; NaN where either is constant."""
    found = np.full(len(scores), np.nan)
    varies = (np.ptp(scores, axis=1) > 0) & (np.ptp(exact) > 0)
    ours = scores[varies] - scores[varies].mean(axis=1, keepdims=True)
    theirs = exact - exact.mean()
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs)
    found[varies] = np.clip(ours @ theirs / norms, -1.0, 1.0)
    return found
