"""Priors over heads: what gates and earlier results give, where they help, and what cannot serve."""

from typing import Any

import numpy as np
import pytest

from mmlens.analyses import gate_attribution, head_attribution, pooled_head_attribution
from mmlens.analyses.head_prior import check_prior, head_priors, prior_name
from mmlens.analyses.samples import as_samples
from mmlens.errors import DesignError, MetricError
from mmlens.metrics import METRICS, as_metric
from mmlens.result import AttributionResult
from tests.analyses.build import helped_prompts, planted_model

BASELINE: Any = "mean_image_tokens"
QUICK: dict[str, Any] = {"n_heldout": 20, "progress": False, "self_check": False}


@pytest.fixture(scope="module")
def model() -> Any:
    return planted_model()


@pytest.fixture(scope="module")
def prompts(model: Any) -> list[Any]:
    return helped_prompts(model, 2)


@pytest.fixture(scope="module")
def earlier(model: Any, prompts: list[Any]) -> AttributionResult:
    return head_attribution(model, prompts, n_masks=72, seed=5, **QUICK)


def test_gates_are_integrated_gradients(model: Any, prompts: list[Any]) -> None:
    inputs = as_samples(model, prompts)
    found = head_priors(model, inputs, "gates", metric=METRICS["logit"], baseline=BASELINE)
    expected = gate_attribution(model, prompts, progress=False).effect.values
    for i in range(2):
        np.testing.assert_allclose(found(i), expected[i], atol=1e-6)
    assert head_priors(model, inputs, "none", metric=METRICS["logit"], baseline=BASELINE)(0) is None


def test_an_earlier_result_knows_its_own_prompts(
    model: Any, prompts: list[Any], earlier: AttributionResult
) -> None:
    turned = as_samples(model, prompts[::-1])
    found = head_priors(model, turned, earlier, metric=METRICS["logit"], baseline=BASELINE)
    np.testing.assert_array_equal(found(0), earlier.theta[1])
    np.testing.assert_array_equal(found(1), earlier.theta[0])
    strange = AttributionResult(
        data=earlier.data, info=earlier.info.model_copy(update={"prompts": ("who ?", "why ?")})
    )
    mean = head_priors(model, turned, strange, metric=METRICS["logit"], baseline=BASELINE)(0)
    np.testing.assert_allclose(mean, earlier.theta.values.mean(0))


@pytest.mark.parametrize("source", ["gates", "earlier"])
def test_few_masks_do_with_a_prior(
    model: Any, prompts: list[Any], earlier: AttributionResult, source: str
) -> None:
    prior: Any = earlier if source == "earlier" else "gates"
    few: dict[str, Any] = {"n_masks": 28, "design": "antithetic", **QUICK}
    exact = head_attribution(model, prompts, n_masks=240, seed=9, **QUICK).theta.values
    helped = head_attribution(model, prompts, prior=prior, estimator="prior_ridge", **few)
    alone = head_attribution(model, prompts, estimator="ridge", **few)
    error = lambda found: np.abs(found.theta.values - exact).mean()  # noqa: E731
    assert error(helped) < error(alone)
    assert helped.data.attrs["estimator"] == "prior_ridge"
    assert helped.info.settings["prior"] == prior_name(prior)
    assert helped.info.settings["n_runs"] == 2 * (2 + 28 + 20)


def test_what_cannot_serve(model: Any, prompts: list[Any], earlier: AttributionResult) -> None:
    check: Any = lambda prior, estimator="auto", metric="logit", seed=0: check_prior(  # noqa: E731
        prior, estimator, model, metric=metric, seed=seed
    )
    check(earlier)
    check("none", "ols")
    with pytest.raises(DesignError, match="drawn with seed 5, too"):
        check(earlier, seed=5)
    with pytest.raises(DesignError, match="explains 'logit', not 'prob'"):
        check(earlier, metric="prob")
    with pytest.raises(DesignError, match="estimator='lasso' uses no prior"):
        check("gates", "lasso")
    narrow = AttributionResult(data=earlier.data.isel(head=slice(2)), info=earlier.info)
    with pytest.raises(DesignError, match=r"the prior has \(3, 2\) layers and heads, this model \(3, 4\)"):
        check(narrow)
    flat = as_metric(lambda logits, inputs: logits[:, -1, 7].detach())
    gates = head_priors(model, as_samples(model, prompts), "gates", metric=flat, baseline=BASELINE)
    with pytest.raises(MetricError, match="not differentiable"):
        gates(0)


@pytest.mark.usefixtures("unchecked")
def test_unknown_priors(model: Any) -> None:
    with pytest.raises(DesignError, match="prior='flat' is unknown"):
        check_prior("flat", "auto", model, metric="logit", seed=0)  # pyright: ignore[reportArgumentType]


def test_a_prior_is_missed_before_anything_runs(model: Any, prompts: list[Any]) -> None:
    with pytest.raises(DesignError, match="shrinks towards a prior; give one"):
        head_attribution(model, prompts, estimator="prior_ridge", n_masks=24, **QUICK)


def test_a_pooled_result_gives_every_prompt_what_they_share(model: Any, prompts: list[Any]) -> None:
    pooled = pooled_head_attribution(model, prompts, n_masks=24, seed=5, **QUICK)
    found = head_priors(model, as_samples(model, prompts), pooled, metric=METRICS["logit"], baseline=BASELINE)
    for i in range(2):
        np.testing.assert_array_equal(found(i), pooled.theta)
    assert prior_name(pooled) == "pooled result, seed 5, 2 prompts"
    with pytest.raises(DesignError, match="drawn with seed 5, too"):
        check_prior(pooled, "auto", model, metric="logit", seed=5)
    with pytest.raises(DesignError, match="explains 'logit', not 'prob'"):
        check_prior(pooled, "auto", model, metric="prob", seed=0)
