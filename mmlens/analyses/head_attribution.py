"""Head attribution: how much each head's reading of the image adds to the answer, given that others read too.

1. Prepare the prompts; encode their images once.
2. Per prompt, open its runs under head masks (shared-prefix engine where exact; self-checked).
3. Draw masks in which a random half of the heads cannot read the image; run them; fit the metric by a linear
   function of the mask. Its coefficients theta are the attribution (``surrogate``). A prior, from gradients of gates
   or an earlier result, saves masks where only few can be afforded (``head_prior``).
4. Judge the fit on fresh masks.
5. Locate on the image: attention from the final token, weighted with the positive part of theta.
6. Assemble the result.

Source: Kim et al. 2025, arXiv 2509.17588. From the paper: ablation of what text reads from the image by
replaced keys and values, and least squares on sampled masks. Ours, since the paper's choice is not known to
us: the law and number of masks, what the baseline averages over, ridge and lasso, the prior, the choice among them,
intervals, and step 5.
"""

import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mmlens.analyses.attention_weight import attention_rows
from mmlens.analyses.design import DesignKind
from mmlens.analyses.fit import Estimator
from mmlens.analyses.head_prior import OfSample, Prior, check_prior, head_priors, prior_name
from mmlens.analyses.ran import Ran
from mmlens.analyses.samples import (
    as_samples,
    baseline_name,
    named,
    run_info,
    sample_coords,
    sample_generator,
)
from mmlens.analyses.surrogate import Growth, Surrogate, SurrogatePlan, fit_surrogate
from mmlens.engine import Engine, open_runs
from mmlens.errors import MMLensError
from mmlens.inputs import Inputs, TokenMap
from mmlens.interventions import HeadBaseline, ImageKV
from mmlens.metrics import Metric, as_metric
from mmlens.model import HookedVLM
from mmlens.result import AttributionResult, image_variables, token_variables


def head_attribution(
    model: HookedVLM,
    prompts: Any,
    *,
    metric: Any = "logit",
    baseline: HeadBaseline | ImageKV = "mean_image_tokens",
    n_masks: int | Literal["auto"] = "auto",
    keep: float = 0.5,
    design: DesignKind | Literal["auto"] = "auto",
    estimator: Estimator = "auto",
    n_heldout: int = 128,
    confidence: float = 0.95,
    reliability: float = 0.95,
    max_masks: int | None = None,
    growth: Growth = "double",
    prior: Prior = "none",
    seed: int = 0,
    first_sample: int = 0,
    engine: Engine = "auto",
    batch_size: int | None = None,
    compile: bool = False,
    self_check: bool = True,
    progress: bool = True,
) -> AttributionResult:
    """Attributes each prompt's answer to the heads that carry the image into the text.

    Args:
        model: the model.
        prompts: prompts, chat messages, a processor's tensors or ``Inputs``.
        metric: a name (see ``mmlens.metrics``), a metric, or a callable ``(logits, inputs) -> [batch]``.
        baseline: what an ablated head reads in place of every image token: ``mean_image_tokens`` of the
            prompt's own images, ``knockout`` (nothing), ``zero``, or given keys and values.
        n_masks: head masks to fit per prompt, or ``auto``: from four per head up, until ``reliability`` is
            reached.
        keep: probability that a mask keeps a head.
        design: ``hadamard``, ``antithetic``, ``iid``, or ``auto`` (the first of these that fits).
        estimator: ``ols``, ``ridge``, ``prior_ridge``, ``lasso``; ``auto``: least squares unless ridge (around the
            prior, if there is one) predicts clearly better; or ``best``, by error on left-out folds.
        n_heldout: fresh masks per prompt to judge the fit by.
        confidence: coverage of each head's interval.
        reliability: split-half correlation (Spearman-Brown) of theta at which ``auto`` stops drawing masks.
        max_masks: most masks that ``auto`` may fit per prompt; None for about 32 per head.
        growth: how ``auto`` goes on: ``double``, or one ``block`` of about two masks per head at a time.
        prior: what ridge may shrink towards: ``none``, ``gates`` (integrated gradients over head gates; the metric
            must be differentiable), or an earlier result of another seed.
        seed: of masks and bootstrap; each sample has its own stream.
        first_sample: number of the first prompt in the set that it is taken from; its masks are those of that number.
        engine: ``auto``, ``prefix`` or ``plain``; see ``mmlens.engine.open_runs``.
        batch_size: masks run together; None chooses by size and free memory. Should memory run out, it is halved and
            the work goes on; ``info`` has the size that was used last and how often it was halved.
        compile: whether the engine's layers run through ``torch.compile``.
        self_check: whether to compare the engine with the plain path on two random masks per prompt.
        progress: whether to show a bar.

    Returns:
        theta [sample, layer, head] in the metric's unit, positive = removing the head hurts the answer; with
        intervals, held-out R2 and Pearson, split-half correlation, and the clean and fully ablated metric.

    Raises:
        AnswerError: the metric needs an answer that a prompt lacks.
        DesignError: the masks asked for cannot be drawn or fitted, the prior cannot serve, or the metric ignores
            head masks.
        EngineNotExact: see ``mmlens.engine.open_runs``.
        NonFiniteError: the metric is not finite under some mask.

    Source: Kim et al. 2025, arXiv 2509.17588; what is ours is said at the top of this file.
    """
    started = time.perf_counter()
    plan = SurrogatePlan(
        n_masks=n_masks,
        keep=keep,
        design=design,
        estimator=estimator,
        n_heldout=n_heldout,
        confidence=confidence,
        reliability=reliability,
        max_masks=max_masks,
        growth=growth,
    )
    measure = as_metric(metric)
    check_prior(prior, estimator, model, metric=measure.name, seed=seed)
    inputs = as_samples(model, prompts, measure)  # 1
    priors = head_priors(model, inputs, prior, metric=measure, baseline=baseline)
    opening = {"baseline": baseline, "engine": engine, "batch_size": batch_size, "compile": compile}
    opening["self_check"] = self_check
    found, ran = _surrogates(
        model, inputs, measure, plan, (seed, first_sample), opening, priors, progress
    )  # 2-4
    data = _dataset(model, inputs, found, plan, measure, baseline_name(baseline))  # 5, 6
    settings = {**_settings(plan, measure, opening, prior, found), **ran.settings}
    about: dict[str, Any] = {**ran.info, "seed": seed}
    info = run_info(model, inputs, seconds=time.perf_counter() - started, settings=settings, **about)
    return AttributionResult(data=data, info=info)


def _settings(
    plan: SurrogatePlan, metric: Metric, opening: dict[str, Any], prior: Prior, found: Sequence[Surrogate]
) -> dict[str, Any]:
    return {
        **vars(plan),
        "metric": metric.name,
        "baseline": baseline_name(opening["baseline"]),
        "self_check": opening["self_check"],
        "compile": opening["compile"],
        "prior": prior_name(prior),
        "n_runs": sum(one.n_runs for one in found),
    }


def _surrogates(
    model: HookedVLM,
    inputs: Inputs,
    metric: Metric,
    plan: SurrogatePlan,
    seed_and_first: tuple[int, int],
    opening: dict[str, Any],
    priors: OfSample,
    progress: bool,
) -> tuple[list[Surrogate], Ran]:
    n, per_sample = (
        inputs.batch_size,
        plan.first_size(model.cfg.n_layers * model.cfg.n_heads) + plan.n_heldout + 2,
    )
    found, ran = [], Ran()
    seed, first = seed_and_first
    with tqdm(total=n * per_sample, desc="head attribution", unit="run", disable=not progress) as bar:
        for i in range(n):
            bar.set_postfix_str(f"prompt {i + 1} of {n}", refresh=False)
            check, masks = sample_generator(seed, first + i, "check"), sample_generator(seed, first + i)
            try:
                runs = open_runs(
                    model, inputs.select([i]), metric=metric, generator=check, **ran.going_on(opening)
                )
                found.append(fit_surrogate(runs, plan, generator=masks, prior=priors(i), progress=bar))
            except MMLensError as error:
                raise named(error, inputs, i) from error
            ran.note(runs)
    return found, ran


def _dataset(
    model: HookedVLM,
    inputs: Inputs,
    found: Sequence[Surrogate],
    plan: SurrogatePlan,
    metric: Metric,
    baseline: str,
) -> xr.Dataset:
    heads = ("sample", "layer", "head")
    interval = np.stack([np.moveaxis(one.fit.interval, 0, -1) for one in found])
    interval_text = f"{plan.confidence:.0%} bootstrap interval of theta over masks".replace("%", " %")
    data = xr.Dataset(
        {
            "theta": (heads, np.stack([one.fit.theta for one in found])),
            "interval": ((*heads, "bound"), interval, {"description": interval_text}),
            "heldout_predicted": (("sample", "mask"), np.stack([one.predicted for one in found])),
            "heldout_measured": (("sample", "mask"), np.stack([one.measured for one in found])),
            "n_masks": ("sample", np.array([one.fit.n_masks for one in found])),
            "intercept": ("sample", np.array([one.fit.intercept for one in found])),
            "heldout_pearson": ("sample", np.array([one.pearson for one in found])),
            "reliability": (
                "sample",
                np.array([one.reliability for one in found]),
                {
                    "description": "expected correlation of theta with that of as many fresh masks "
                    "(Spearman-Brown value of split_half)",
                    "unit": "1",
                },
            ),
            **{
                name: ("sample", np.array([getattr(one, name) for one in found]))
                for name in ("r2", "clean", "ablated", "split_half")
            },
        },
        attrs={
            "metric": metric.name,
            "unit": metric.unit,
            "baseline": baseline,
            "estimator": _counted([one.fit.estimator for one in found]),
            "design": f"{found[0].kind}, keep {plan.keep:g}",
        },
    )
    weights, logits = _cell_weights(model, inputs, found)
    data.update(_drawing(inputs, weights))
    return data.assign_coords(sample_coords(model, inputs, logits))


def _cell_weights(
    model: HookedVLM, inputs: Inputs, found: Sequence[Surrogate]
) -> tuple[list[Float[np.ndarray, "row col"] | None], Float[Tensor, "sample d_vocab"]]:
    """Per image cell, the final token's attention summed over heads with weight max(theta, 0)."""
    weights, logits = [], []
    for i, one in enumerate(found):
        sample = inputs.select([i])
        rows, final_logits = attention_rows(model, sample)
        theta = torch.from_numpy(one.fit.theta).clamp(min=0)
        per_token = (theta[..., None] * rows[:, :, 0].double().cpu()).sum((0, 1)).numpy()
        grids = sample.token_maps[0].images
        weights.append(per_token[grids[0].positions] if grids else None)
        logits.append(final_logits)
    return weights, torch.cat(logits)


def _drawing(
    inputs: Inputs, weights: Sequence[Float[np.ndarray, "row col"] | None]
) -> dict[str, xr.DataArray]:
    """Tokens, and the first image of each sample with its cells where the inputs know them."""
    maps: Sequence[TokenMap] = [inputs.select([i]).token_maps[0] for i in range(inputs.batch_size)]
    found = token_variables(tokens=[one.tokens for one in maps], roles=[one.roles for one in maps])
    if all(one.thumbnails and one.images for one in maps):
        found |= image_variables(
            images=[one.thumbnails[0] for one in maps],
            boxes=[one.images[0].boxes for one in maps],
            sizes=[one.images[0].size for one in maps],
            weights=weights,
        )
    return found


def _counted(names: Sequence[str]) -> str:
    """``ols``, or ``ols (3), ridge (1)``."""
    kinds = sorted(set(names))
    return kinds[0] if len(kinds) == 1 else ", ".join(f"{kind} ({names.count(kind)})" for kind in kinds)
