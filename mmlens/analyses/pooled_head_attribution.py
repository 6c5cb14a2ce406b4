"""Pooled head attribution: one map for a set of prompts, from a few masked runs of each.

1. Prepare the prompts; encode their images once. Refuse what cannot be fitted.
2. Open the runs of every prompt (self-checked) and measure its two ends: no head ablated, every head ablated.
3. Deal one design of head masks out to the prompts (``dealt_design``) and run each prompt's share. Unless the number of
   masks was given, all prompts get more until the common coefficients of two halves agree well enough
   (``pooled_plan``).
4. Fit one theta to all of them, with an intercept per prompt (``pooled_fit``).
5. Run fresh i.i.d. masks of every prompt, and see how well the common theta predicts each.
6. Assemble the result.

A prompt's runs are opened anew for every round, so that one prompt's keys and values are in memory at a time.

Source: masks and surrogate as in head attribution (Kim et al. 2025, arXiv 2509.17588); pooling over prompts is ours.
"""

import time
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from mmlens.analyses.dealt_design import DealtDesign
from mmlens.analyses.design import DesignKind, draw_design
from mmlens.analyses.fit import Estimator, prediction_scores
from mmlens.analyses.head_prior import OfSample, Prior, check_prior, head_priors, prior_name
from mmlens.analyses.pooled_fit import PooledFit, fit_pooled, split_half_pooled
from mmlens.analyses.pooled_plan import first_round, next_round, plan_for
from mmlens.analyses.ran import Ran
from mmlens.analyses.samples import (
    as_samples,
    baseline_name,
    named,
    run_info,
    sample_coords,
    sample_generator,
)
from mmlens.analyses.surrogate import SurrogatePlan, measured_ends
from mmlens.engine import Engine, MaskedRuns, open_runs
from mmlens.errors import DesignError, MMLensError
from mmlens.inputs import Inputs
from mmlens.interventions import HeadBaseline, ImageKV
from mmlens.metrics import Metric, as_metric
from mmlens.model import HookedVLM
from mmlens.result import PooledAttributionResult

Array = np.ndarray


def pooled_head_attribution(
    model: HookedVLM,
    prompts: Any,
    *,
    metric: Any = "logit",
    baseline: HeadBaseline | ImageKV = "mean_image_tokens",
    n_masks: int | Literal["auto"] = "auto",
    keep: float = 0.5,
    design: DesignKind | Literal["auto"] = "auto",
    estimator: Estimator = "auto",
    n_heldout: int = 64,
    confidence: float = 0.95,
    reliability: float = 0.95,
    max_masks: int | None = None,
    prior: Prior = "none",
    seed: int = 0,
    engine: Engine = "auto",
    batch_size: int | None = None,
    self_check: bool = True,
    progress: bool = True,
) -> PooledAttributionResult:
    """Attributes the answers of several prompts to heads, by one map that they share.

    Args:
        model: the model.
        prompts: two or more prompts, chat messages, a processor's tensors or ``Inputs``.
        metric: a name (see ``mmlens.metrics``), a metric, or a callable ``(logits, inputs) -> [batch]``.
        baseline: what an ablated head reads in place of every image token, as in ``head_attribution``.
        n_masks: head masks to fit per prompt, or ``auto``: from four per head in all up, until ``reliability`` is
            reached; four per prompt at least.
        keep: probability that a mask keeps a head.
        design: law of all masks together: ``hadamard``, ``antithetic``, ``iid``, or ``auto`` (the first that fits).
        estimator: as in ``head_attribution``; ``auto`` is least squares where there are four masks per head in all and
            no prior, since prompts that differ would else look like noise to be shrunk away.
        n_heldout: fresh masks per prompt to judge the common theta by.
        confidence: coverage of each head's interval.
        reliability: split-half correlation (Spearman-Brown) of the common theta at which ``auto`` stops.
        max_masks: most masks per prompt that ``auto`` may fit; None for about 32 per head in all.
        prior: what ridge may shrink towards, as in ``head_attribution``; the mean over these prompts.
        seed: of masks and bootstrap.
        engine: ``auto``, ``prefix`` or ``plain``; see ``mmlens.engine.open_runs``.
        batch_size: masks run together; None chooses.
        self_check: whether to compare the engine with the plain path on two random masks per prompt.
        progress: whether to show a bar.

    Returns:
        theta [layer, head] in the metric's unit, positive = removing the head hurts the answers, with intervals for
        these prompts; and per prompt how well it predicts fresh masks (``r2``, ``heldout_pearson``, ``slope``).

    Raises:
        AnswerError, EngineNotExact, NonFiniteError: as ``head_attribution``.
        DesignError: as ``head_attribution``, or there is only one prompt.

    Source: see the top of this file.
    """
    started, measure = time.perf_counter(), as_metric(metric)
    asked = SurrogatePlan(
        n_masks=n_masks,
        keep=keep,
        design=design,
        estimator=estimator,
        n_heldout=n_heldout,
        confidence=confidence,
        reliability=reliability,
        max_masks=max_masks,
    )
    check_prior(prior, estimator, model, metric=measure.name, seed=seed)
    inputs = as_samples(model, prompts, measure)  # 1
    shape, n = (model.cfg.n_layers, model.cfg.n_heads), inputs.batch_size
    plan = plan_for(asked, n, shape[0] * shape[1])
    generator = sample_generator(seed, n)
    dealt = first_round(plan, n, shape, generator)
    opening = {"baseline": baseline, "engine": engine, "batch_size": batch_size, "self_check": self_check}
    priors = head_priors(model, inputs, prior, metric=measure, baseline=baseline)
    bar = tqdm(total=n * (2 + n_heldout) + dealt.n_masks, desc="pooled attribution", disable=not progress)
    with bar:
        bench = _Bench(model=model, inputs=inputs, metric=measure, opening=opening, seed=seed, bar=bar)
        data, dealt = _measured(bench, plan, dealt, priors, generator)  # 2-6
    data.attrs |= {"metric": measure.name, "unit": measure.unit, "baseline": baseline_name(baseline)}
    settings = {**_settings(asked, measure, opening, prior, dealt), **bench.ran.settings}
    told: dict[str, Any] = {**bench.ran.info, "seed": seed}
    info = run_info(model, inputs, seconds=time.perf_counter() - started, settings=settings, **told)
    return PooledAttributionResult(data=data.assign_coords(sample_coords(model, inputs)), info=info)


def _measured(
    bench: "_Bench", plan: SurrogatePlan, dealt: DealtDesign, priors: OfSample, generator: torch.Generator
) -> tuple[xr.Dataset, DealtDesign]:
    """The numbers, and the masks that were fitted in the end."""
    n_layers, n_heads = dealt.design.masks.shape[1:]
    fresh = [_fresh(plan, (n_layers, n_heads), bench.seed, i) for i in range(dealt.n_samples)]
    ends = bench.ends(fresh)  # 2
    dealt, values, halves = _rounds(bench, plan, dealt, generator)  # 3
    fit = _fitted(dealt, values, plan, priors, generator)  # 4
    measured = [bench.values(i, masks) for i, masks in enumerate(fresh)]  # 5
    judged = bench.judged(fit, fresh, measured)
    data = _dataset(fit, ends, halves, judged, plan.confidence)  # 6
    law = f"{dealt.design.kind}, keep {plan.keep:g}, dealt out"
    return data.assign_attrs(estimator=fit.estimator, design=law), dealt


def _settings(
    asked: SurrogatePlan, metric: Metric, opening: dict[str, Any], prior: Prior, dealt: DealtDesign
) -> dict[str, Any]:
    return {
        **{name: value for name, value in vars(asked).items() if name != "growth"},
        "metric": metric.name,
        "baseline": baseline_name(opening["baseline"]),
        "self_check": opening["self_check"],
        "prior": prior_name(prior),
        "n_runs": dealt.n_masks + dealt.n_samples * (2 + asked.n_heldout),
    }


# --- steps 2, 3, 5: runs


def _fresh(
    plan: SurrogatePlan, shape: tuple[int, int], seed: int, sample: int
) -> Bool[Tensor, "mask layer head"]:
    """Masks of one prompt that no fit sees; they do not depend on what the fit needs."""
    generator = sample_generator(seed, sample)
    return draw_design(plan.n_heldout, *shape, kind="iid", keep=plan.keep, generator=generator).masks


@dataclass(frozen=True, kw_only=True, eq=False)
class _Bench:
    """The prompts, ready to be opened one at a time."""

    model: HookedVLM
    inputs: Inputs
    metric: Metric
    opening: dict[str, Any]
    seed: int
    bar: tqdm
    ran: Ran = field(default_factory=Ran)

    def runs(self, sample: int, *, again: bool = True) -> MaskedRuns:
        """The masked runs of one prompt; only the first time is the engine held against the plain path."""
        options: dict[str, Any] = self.ran.going_on(self.opening) | ({"self_check": False} if again else {})
        check = sample_generator(self.seed, sample, "check")
        one = self.inputs.select([sample])
        return open_runs(self.model, one, metric=self.metric, generator=check, **options)

    def ends(self, fresh: list[Bool[Tensor, "mask layer head"]]) -> Float[Array, "sample end"]:
        """The metric of every prompt with no head and with every head ablated."""
        found = []
        for i, masks in enumerate(fresh):
            try:
                runs = self.runs(i, again=False)
                found.append(measured_ends(runs, masks, self.bar))
            except MMLensError as error:
                raise named(error, self.inputs, i) from error
            self.ran.note(runs)
        return np.array(found)

    def values(self, sample: int, masks: Bool[Tensor, "mask layer head"]) -> Float[Tensor, " mask"]:
        """The metric of one prompt under each mask."""
        try:
            runs = self.runs(sample)
            values = runs(masks, progress=self.bar)
        except MMLensError as error:
            raise named(error, self.inputs, sample) from error
        self.ran.note(runs)
        return values

    def dealt(self, design: DealtDesign) -> Float[Tensor, " mask"]:
        """The metric under each mask of a design, each with its own prompt."""
        values = torch.zeros(design.n_masks, dtype=torch.float64)
        for i in range(design.n_samples):
            if len(own := design.of(i)):
                values[own] = self.values(i, design.design.masks[own])
        return values

    def judged(
        self,
        fit: PooledFit,
        fresh: list[Bool[Tensor, "mask layer head"]],
        measured: list[Float[Tensor, " mask"]],
    ) -> dict[str, Array]:
        """How well the common theta predicts each prompt's fresh masks."""
        rows = []
        for i, (masks, values) in enumerate(zip(fresh, measured, strict=True)):
            predicted = fit.predict(masks, i)
            try:
                r2, pearson = prediction_scores(predicted, values)
            except MMLensError as error:
                raise named(error, self.inputs, i) from error
            slope = float(np.polyfit(predicted, values.numpy(), 1)[0])
            rows.append((r2, pearson, slope, predicted, values.numpy()))
        names = ("r2", "heldout_pearson", "slope", "heldout_predicted", "heldout_measured")
        return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def _rounds(
    bench: _Bench, plan: SurrogatePlan, dealt: DealtDesign, generator: torch.Generator
) -> tuple[DealtDesign, Float[Tensor, " mask"], tuple[float, float]]:
    """All masks with their values, and how well halves of them agree."""
    n_layers, n_heads = dealt.design.masks.shape[1:]
    values, rounds = bench.dealt(dealt), [dealt]
    halves = _agreement(dealt, values, plan.estimator)
    while not halves[1] >= plan.reliability:
        n_own = sum(one.own for one in rounds)
        more = next_round(plan, dealt, (n_layers, n_heads), generator, blocks=n_own > 0)
        if more is None:
            break
        bench.bar.total += more.n_masks
        if more.own and n_own % 2:
            rounds[-1], more = rounds[-1].in_half(0), more.in_half(1)
        rounds.append(more)
        dealt, values = reduce(DealtDesign.joined, rounds), torch.cat([values, bench.dealt(more)])
        halves = _agreement(dealt, values, plan.estimator)
    return dealt, values, halves


def _agreement(
    dealt: DealtDesign, values: Float[Tensor, " mask"], estimator: Estimator
) -> tuple[float, float]:
    try:
        return split_half_pooled(dealt.design, dealt.sample, dealt.half, values, estimator=estimator)
    except DesignError:  # half of the masks is too few to fit; the whole may do
        return float("nan"), float("nan")


# --- steps 4 and 6


def _fitted(
    dealt: DealtDesign,
    values: Float[Tensor, " mask"],
    plan: SurrogatePlan,
    priors: OfSample,
    generator: torch.Generator,
) -> PooledFit:
    """Step 4; ``auto`` is least squares where there are two pairs per head.

    What prompts do not share adds to the error on left-out runs, by which ridge is chosen, even where it adds none to
    the coefficients of least squares, as with whole blocks.
    """
    known = [one for i in range(dealt.n_samples) if (one := priors(i)) is not None]
    enough = dealt.n_masks >= 4 * dealt.design.masks[0].numel()
    return fit_pooled(
        dealt.parts(),
        [values[dealt.of(i)] for i in range(dealt.n_samples)],
        estimator="ols" if plan.estimator == "auto" and enough and not known else plan.estimator,
        prior=np.mean(known, axis=0) if known else None,
        confidence=plan.confidence,
        generator=generator,
    )


def _dataset(
    fit: PooledFit,
    ends: Float[Array, "sample end"],
    halves: tuple[float, float],
    judged: dict[str, Array],
    confidence: float,
) -> xr.Dataset:
    text = f"{confidence:.0%} bootstrap interval of theta over masks, for these prompts".replace("%", " %")
    interval = np.moveaxis(fit.interval, 0, -1)
    return xr.Dataset(
        {
            "theta": (("layer", "head"), fit.theta),
            "interval": (("layer", "head", "bound"), interval, {"description": text}),
            "split_half": ((), halves[0]),
            "reliability": ((), halves[1]),
            "intercept": ("sample", fit.intercept),
            "clean": ("sample", ends[:, 0]),
            "ablated": ("sample", ends[:, 1]),
            "n_masks": ("sample", fit.n_masks),
            **{name: (("sample", "mask")[: column.ndim], column) for name, column in judged.items()},
        }
    )
