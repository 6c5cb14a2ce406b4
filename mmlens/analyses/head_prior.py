"""What to expect of the coefficients over heads before any mask is run: from gradients of gates, or an earlier result.

1. ``gates``: integrated gradients over gates on the heads (``gate_attribution``), eight passes forward and backward per
   prompt. Their sum is the whole effect, and they lie close to the coefficients of masked regression; the
   gradient at the clean point alone does not, for heads that can stand in for each other.
2. An earlier result (warm start): a prompt's own theta where the result has the same question about the same image,
   else the mean of theta over the earlier prompts; of a pooled result, the theta that its prompts share.
3. Ridge then shrinks towards the prior instead of towards 0 (``fit``), if left-out runs say that this is better.

Source: ridge around a prior mean is Bayesian linear regression; its use on head masks is ours.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float

from mmlens.analyses.gate_attribution import gate_attribution
from mmlens.analyses.samples import image_digests
from mmlens.errors import DesignError
from mmlens.inputs import Inputs
from mmlens.interventions import HeadBaseline, ImageKV
from mmlens.metrics import Metric
from mmlens.model import HookedVLM
from mmlens.result import AttributionResult, PooledAttributionResult

Prior = Literal["none", "gates"] | AttributionResult | PooledAttributionResult
OfSample = Callable[[int], Float[np.ndarray, "layer head"] | None]

_USING = ("auto", "prior_ridge", "best")


def check_prior(prior: Prior, estimator: str, model: HookedVLM, *, metric: str, seed: int) -> None:
    """Refuses a prior that cannot serve.

    Raises:
        DesignError: it is unknown, missing, of another model shape or metric, drawn by the same masks, or not used.
    """
    if isinstance(prior, str):
        if prior not in ("none", "gates"):
            raise DesignError(
                f"prior={prior!r} is unknown; give 'none', 'gates' or an earlier AttributionResult."
            )
        if prior == "none":
            if estimator == "prior_ridge":
                raise DesignError(
                    "estimator='prior_ridge' shrinks towards a prior; give one, for example prior='gates'."
                )
            return
    else:
        _check_result(prior, model, metric, seed)
    if estimator not in _USING:
        raise DesignError(
            f"estimator={estimator!r} uses no prior; choose one of {', '.join(_USING)}, or prior='none'."
        )


def _check_result(
    prior: AttributionResult | PooledAttributionResult, model: HookedVLM, metric: str, seed: int
) -> None:
    shape, mine = tuple(prior.theta.shape[-2:]), (model.cfg.n_layers, model.cfg.n_heads)
    if shape != mine:
        raise DesignError(f"the prior has {shape} layers and heads, this model {mine}.")
    if prior.data.attrs["metric"] != metric:
        raise DesignError(
            f"the prior explains {prior.data.attrs['metric']!r}, not {metric!r}; units would be mixed."
        )
    if prior.info.seed == seed:
        raise DesignError(
            f"the prior was drawn with seed {seed}, too, so its masks may be those of this fit, which would then "
            "confirm it whatever they say; give another seed."
        )
    if not np.isfinite(prior.theta.values).all():
        raise DesignError("the prior is not finite for every head and prompt.")


def head_priors(
    model: HookedVLM, inputs: Inputs, prior: Prior, *, metric: Metric, baseline: HeadBaseline | ImageKV
) -> OfSample:
    """The prior of each prompt, computed when it is asked for.

    Args:
        model: the model.
        inputs: the prompts.
        prior: where it comes from.
        metric: what is explained; ``gates`` differentiates it.
        baseline: what an ablated head reads.

    Returns:
        From the number of a prompt to its prior in the metric's unit, or None.
    """
    if prior == "none":
        return lambda sample: None
    if isinstance(prior, PooledAttributionResult):
        common = prior.theta.values.astype(float)
        return lambda sample: common
    if isinstance(prior, AttributionResult):
        theta = prior.theta.values.astype(float)
        places = _same_prompts(prior, inputs)
        return lambda sample: theta.mean(0) if places[sample] is None else theta[places[sample]]

    def gates(sample: int) -> Float[np.ndarray, "layer head"]:
        found = gate_attribution(
            model, inputs.select([sample]), metric=metric, baseline=baseline, progress=False
        )
        return found.effect.values[0].astype(float)

    return gates


def prior_name(prior: Prior) -> str:
    """Where a prior comes from, in a few words."""
    if isinstance(prior, str):
        return prior
    kind = "pooled" if isinstance(prior, PooledAttributionResult) else "earlier"
    return f"{kind} result, seed {prior.info.seed}, {prior.n} prompts"


def _same_prompts(prior: AttributionResult, inputs: Inputs) -> list[int | None]:
    """Of each prompt, its number in the earlier result, or None."""
    known = {}
    if len(prior.info.prompts) == len(prior.info.image_sha256):
        known = {
            both: i for i, both in enumerate(zip(prior.info.prompts, prior.info.image_sha256, strict=True))
        }
    questions = [prompt.question for prompt in inputs.prompts] or [""] * inputs.batch_size
    return [known.get(both) for both in zip(questions, image_digests(inputs), strict=True)]
