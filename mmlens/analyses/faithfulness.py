"""Faithfulness and completeness: how few of a method's top heads restore the effect, how few must go.

With m(C) the metric when only the heads C may read the image, M all heads:

1. Rank the heads by each method's scores, fitted on other prompts than those evaluated here.
2. Draw layer-matched random rankings from the first method's.
3. Per prompt, run m(top k) and m(M without top k) for every ranking and size k.
4. F(k) = (m(top k) - m(none)) / (m(M) - m(none)); completeness(k) = 1 - (m(M without top k) - m(none)) /
   (same).
5. Areas under both curves over k / all heads, smallest k that reaches 0.8 and 0.9, bootstrap over prompts.

The ratio is taken of sums over prompts: a prompt whose own denominator is near zero cannot blow it up. So a
prompt's value here is its share of the mean effect, and the mean over prompts is the ratio of sums. Ratios by
each prompt's own effect are kept beside it, NaN where that effect is too small; those prompts are listed.

Source: Kim et al. 2025, arXiv 2509.17588, for the definitions; pooling, areas and intervals are ours.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from mmlens.analyses.ran import Ran
from mmlens.analyses.random_heads import layer_matched_rankings, ranking_of
from mmlens.analyses.samples import (
    as_samples,
    baseline_name,
    image_digests,
    named,
    run_info,
    sample_coords,
    sample_generator,
)
from mmlens.engine import Engine, MaskedRuns, open_runs
from mmlens.errors import DesignError, MMLensError, ShapeError
from mmlens.inputs import Inputs
from mmlens.interventions import HeadBaseline, ImageKV
from mmlens.metrics import as_metric
from mmlens.model import HookedVLM
from mmlens.result import FaithfulnessResult, HeadResult, mean_map

Scores = HeadResult | np.ndarray | Tensor | xr.DataArray
Array = np.ndarray

_SMALL_EFFECT = 0.1
"""A prompt's own effect is too small to divide by below this share of the mean absolute effect."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Measured:
    """Metric of every prompt under every head set; rankings are the methods', then the random draws'."""

    keep: Float[Array, "ranking sample size"]
    remove: Float[Array, "ranking sample size"]
    clean: Float[Array, " sample"]
    ablated: Float[Array, " sample"]

    @property
    def effect(self) -> Float[Array, " sample"]:
        """What all heads together add."""
        return self.clean - self.ablated

    def gains(self) -> tuple[Float[Array, "ranking sample size"], Float[Array, "ranking sample size"]]:
        """Numerators of faithfulness and completeness, in the metric's unit."""
        return self.keep - self.ablated[:, None], self.clean[:, None] - self.remove


def faithfulness(
    model: HookedVLM,
    prompts: Any,
    scores: Mapping[str, Scores],
    *,
    metric: Any = "logit",
    baseline: HeadBaseline | ImageKV = "mean_image_tokens",
    sizes: Sequence[int] | Literal["auto"] = "auto",
    n_random: int = 10,
    n_boot: int = 1000,
    allow_overlap: bool = False,
    engine: Engine = "auto",
    batch_size: int | None = None,
    self_check: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> FaithfulnessResult:
    """Compares head rankings by what their top heads restore and what their removal costs.

    Args:
        model: the model.
        prompts: prompts to evaluate on; not those that the scores come from.
        scores: method name -> result, or array [layer, head], or [sample, layer, head] for a ranking per
            prompt.
        metric: a name (see ``mmlens.metrics``), a metric, or a callable ``(logits, inputs) -> [batch]``.
        baseline: what an ablated head reads in place of every image token.
        sizes: head-set sizes; 0 and all heads are always added. ``auto``: all up to 16, then ever wider
            steps.
        n_random: layer-matched random rankings, matched to the first method.
        n_boot: bootstrap draws over prompts behind the intervals.
        allow_overlap: evaluate although a result was fitted on some of these prompts; recorded in ``info``.
        engine: see ``mmlens.engine.open_runs``.
        batch_size: masks run together; None chooses.
        self_check: whether to compare the engine with the plain path first.
        seed: of random rankings and bootstrap.
        progress: whether to show a bar.

    Returns:
        Curves, areas and sizes. Faithfulness 1 = the kept heads alone restore the clean metric; completeness
        1 = without these heads nothing of the effect is left.

    Raises:
        DesignError: a result was fitted on these prompts, or ablating all heads does not lower the metric.
        ShapeError: scores are not one per head of this model.
    """
    started = time.perf_counter()
    measure = as_metric(metric)
    inputs = as_samples(model, prompts, measure)
    _check_options(scores, n_random)
    overlap = _check_overlap(scores, inputs, allow_overlap)
    ranked = torch.stack([_rankings(model, inputs, name, one) for name, one in scores.items()])  # 1
    generator = sample_generator(seed, inputs.batch_size)
    draws = [
        layer_matched_rankings(r, model.cfg.n_heads, n_random, generator=generator) for r in ranked[0]
    ]  # 2
    rankings = torch.cat([ranked, torch.stack(draws, dim=1)])  # [ranking, sample, rank]
    grid = _sizes(sizes, rankings.shape[-1])
    opening = {"metric": measure, "baseline": baseline, "engine": engine, "batch_size": batch_size}
    opening["self_check"] = self_check
    measured, ran = _measure(model, inputs, rankings, grid, opening, seed, progress)  # 3
    data = _dataset(measured, list(scores), grid, n_boot, generator)  # 4, 5
    data.attrs |= {"metric": measure.name, "unit": measure.unit, "baseline": baseline_name(baseline)}
    info = run_info(
        model,
        inputs,
        seconds=time.perf_counter() - started,
        settings={
            "n_random": n_random,
            "n_boot": n_boot,
            "prompts_also_fitted": overlap,
            "prompts_with_small_effect": np.flatnonzero(_is_small(measured.effect)).tolist(),
            "self_check": self_check,
            **ran.settings,
        },
        **ran.info,
        seed=seed,
    )
    return FaithfulnessResult(data=data.assign_coords(sample_coords(model, inputs)), info=info)


def top_heads(rankings: Int[Tensor, "*n rank"], size: int) -> Bool[Tensor, "*n rank"]:
    """Which heads are among the first ``size`` of each ranking, by head number."""
    return rankings.argsort(dim=-1) < size


def _check_options(scores: Mapping[str, Scores], n_random: int) -> None:
    if not scores:
        raise DesignError(
            "no scores were given; name at least one method: scores={'head_attribution': result}."
        )
    if n_random < 1:
        raise DesignError(f"n_random={n_random}: at least one random ranking is needed, better 10.")


def _check_overlap(scores: Mapping[str, Scores], inputs: Inputs, allow: bool) -> dict[str, int]:
    """How many of the prompts each result was fitted on (a prompt: its question and its pixels)."""
    questions = [prompt.question for prompt in inputs.prompts] or [""] * inputs.batch_size
    here = set(zip(image_digests(inputs), questions, strict=True))
    found = {}
    for name, one in scores.items():
        if isinstance(one, HeadResult):
            theirs = one.info.prompts or ("",) * len(one.info.image_sha256)
            found[name] = len(here & set(zip(one.info.image_sha256, theirs, strict=True)))
    fitted = [name for name, count in found.items() if count]
    if fitted and not allow:
        raise DesignError(
            f"{found[fitted[0]]} of these {inputs.batch_size} prompts were used to compute the scores of "
            f"{', '.join(fitted)}; a ranking must be judged on other prompts. Give others, or "
            "allow_overlap=True."
        )
    return found


def _rankings(model: HookedVLM, inputs: Inputs, name: str, scores: Scores) -> Int[Tensor, "sample rank"]:
    values = np.asarray(mean_map(scores) if isinstance(scores, HeadResult) else scores)
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    if values.shape not in (shape, (inputs.batch_size, *shape)):
        raise ShapeError(
            f"scores of {name!r} have shape {list(values.shape)}; expected [layer, head] = {list(shape)}, "
            "or one such "
            f"map per prompt ({inputs.batch_size})."
        )
    per_sample = torch.from_numpy(np.broadcast_to(values, (inputs.batch_size, *shape)).astype(np.float64))
    return torch.stack([ranking_of(one) for one in per_sample])


def _sizes(sizes: Sequence[int] | Literal["auto"], n_heads_total: int) -> list[int]:
    if isinstance(sizes, str):
        wide = [round(16 * 1.25**step) for step in range(64)]
        sizes = [size for size in (*range(17), *wide) if size <= n_heads_total]
    if any(not 0 <= size <= n_heads_total for size in sizes):
        raise DesignError(
            f"sizes={list(sizes)}: this model has {n_heads_total} heads; sizes run from 0 to that."
        )
    return sorted({0, *sizes, n_heads_total})


def _measure(
    model: HookedVLM,
    inputs: Inputs,
    rankings: Int[Tensor, "ranking sample rank"],
    sizes: Sequence[int],
    opening: Mapping[str, Any],
    seed: int,
    progress: bool,
) -> tuple[_Measured, Ran]:
    keep, remove, ran = [], [], Ran()
    total = inputs.batch_size * rankings.shape[0] * len(sizes) * 2
    with tqdm(total=total, desc="faithfulness", unit="run", disable=not progress) as bar:
        for i in range(inputs.batch_size):
            try:
                check = sample_generator(seed, i, "check")
                runs = open_runs(model, inputs.select([i]), generator=check, **ran.going_on(dict(opening)))
                kept, removed = _measure_one(runs, rankings[:, i], sizes, bar)
            except MMLensError as error:
                raise named(error, inputs, i) from error
            keep.append(kept)
            remove.append(removed)
            ran.note(runs)
    keep, remove = np.stack(keep, axis=1), np.stack(remove, axis=1)
    return _Measured(keep=keep, remove=remove, clean=keep[0, :, -1], ablated=keep[0, :, 0]), ran


def _measure_one(
    runs: MaskedRuns, rankings: Int[Tensor, "ranking rank"], sizes: Sequence[int], bar: tqdm
) -> tuple[Float[Array, "ranking size"], Float[Array, "ranking size"]]:
    top = torch.stack([top_heads(rankings, size) for size in sizes], dim=1)  # [ranking, size, head]
    masks = torch.stack([top, ~top]).unflatten(-1, runs.shape)
    distinct, where = masks.flatten(0, 2).unique(dim=0, return_inverse=True)
    values = runs(distinct, progress=bar)[where].reshape(masks.shape[:3]).numpy()
    bar.update(len(where) - len(distinct))
    return values[0], values[1]


def _dataset(
    measured: _Measured, methods: list[str], sizes: list[int], n_boot: int, generator: torch.Generator
) -> xr.Dataset:
    mean_effect = _checked_effect(measured)
    data = xr.Dataset(coords={"method": np.array(methods, dtype=object), "size": sizes})
    for name, gain in zip(("faithfulness", "completeness"), measured.gains(), strict=True):
        data = data.assign(_curves(name, gain, measured.effect, mean_effect, sizes, len(methods)))
        ratios = _bootstrap(gain[: len(methods)], measured.effect, n_boot, generator)
        if ratios is not None:
            data = data.assign(_intervals(name, ratios, sizes))
    data["effect"] = (
        "sample",
        measured.effect,
        {"description": "clean metric minus that with all heads ablated"},
    )
    return data


def _curves(
    name: str, gain: Array, effect: Array, mean_effect: float, sizes: list[int], n_methods: int
) -> dict[str, tuple[Any, ...]]:
    share = gain / mean_effect  # the mean over samples is the ratio of sums
    own = np.where(_is_small(effect)[:, None], np.nan, gain / np.where(effect == 0, 1.0, effect)[:, None])
    area = np.asarray(np.trapezoid(share, np.array(sizes) / sizes[-1], axis=-1))
    pooled = share.mean(axis=1)
    reach = {threshold: _first_reaching(pooled, sizes, threshold) for threshold in (0.8, 0.9)}
    text = {"description": f"{name}, as a share of the mean effect over prompts"}
    own_text = {
        "description": f"{name}, as a share of the prompt's own effect; NaN where that is too small",
        "unit": "1",
    }
    ending = "" if name == "faithfulness" else "_completeness"
    random_ending = (
        {} if ending else {f"random_k{int(t * 100)}": ("draw", k[n_methods:]) for t, k in reach.items()}
    )
    return {
        name: (("method", "sample", "size"), share[:n_methods], text),
        f"auc_{name}": (("method", "sample"), area[:n_methods]),
        f"random_{name}": (("draw", "sample", "size"), share[n_methods:]),
        f"random_auc_{name}": (("draw", "sample"), area[n_methods:]),
        f"own_{name}": (("method", "sample", "size"), own[:n_methods], own_text),
        **{f"k{int(t * 100)}{ending}": ("method", k[:n_methods]) for t, k in reach.items()},
        **random_ending,
    }


def _first_reaching(
    curves: Float[Array, "ranking size"], sizes: list[int], threshold: float
) -> Float[Array, " ranking"]:
    reached = curves >= threshold
    return np.where(reached.any(axis=1), np.array(sizes, dtype=float)[reached.argmax(axis=1)], np.nan)


def _is_small(effect: Float[Array, " sample"]) -> Bool[Array, " sample"]:
    return np.abs(effect) < _SMALL_EFFECT * np.abs(effect).mean()


def _checked_effect(measured: _Measured) -> float:
    mean_effect = float(measured.effect.mean())
    if mean_effect <= 1e-6 * max(1.0, float(np.abs(measured.clean).mean())):
        raise DesignError(
            f"ablating every head changes the metric by {-mean_effect:+.3g} on average (clean "
            f"{measured.clean.mean():.3g}): the image does not help these answers, so shares of its effect "
            "mean nothing. "
            "Check the answers, or choose prompts that the model answers from the image."
        )
    return mean_effect


def _bootstrap(
    gain: Float[Array, "method sample size"],
    effect: Float[Array, " sample"],
    n_boot: int,
    generator: torch.Generator,
) -> Float[Array, "method size draw"] | None:
    """Ratios of sums of resampled prompts; None where some leave them undefined."""
    n = len(effect)
    index = torch.randint(0, n, (n_boot, n), generator=generator).numpy()
    weights = np.stack([np.bincount(row, minlength=n) for row in index]) / n  # [draw, sample]
    denominators = weights @ effect
    if n < 2 or (denominators <= 0).any():
        return None
    return np.einsum("bs,msk->mkb", weights, gain) / denominators


def _intervals(
    name: str, ratios: Float[Array, "method size draw"], sizes: list[int]
) -> dict[str, tuple[Any, ...]]:
    """95 % percentile intervals of curves, of their areas, and of how far the first method's area leads."""
    area = np.asarray(np.trapezoid(ratios, np.array(sizes) / sizes[-1], axis=1))  # [method, draw]
    text = "95 % bootstrap interval over prompts of "

    def bounds(draws: Float[Array, "*rows draw"]) -> Float[Array, "*rows bound"]:
        return np.moveaxis(np.quantile(draws, [0.025, 0.975], axis=-1), 0, -1)

    return {
        f"{name}_interval": (
            ("method", "size", "bound"),
            bounds(ratios),
            {"description": text + "the ratio of sums"},
        ),
        f"auc_{name}_interval": (
            ("method", "bound"),
            bounds(area),
            {"description": text + f"the area under the {name} curve", "unit": "1"},
        ),
        f"auc_{name}_lead_interval": (
            ("method", "bound"),
            bounds(area[:1] - area),
            {"description": text + "the first method's area minus this one's, paired by prompt", "unit": "1"},
        ),
    }
