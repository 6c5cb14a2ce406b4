"""One theta for several prompts: against least squares with an intercept each, and the statements about them."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from mmlens.analyses.dealt_design import draw_dealt
from mmlens.analyses.design import MaskDesign, draw_design
from mmlens.analyses.fit import fit_heads, split_half
from mmlens.analyses.pooled_fit import fit_pooled, split_half_pooled
from mmlens.errors import DesignError, NonFiniteError

TRUTH = torch.linspace(-1, 2, 12, dtype=torch.float64)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def runs(
    kind: str, n: int, size: int, noise: float, seed: int = 0
) -> tuple[list[MaskDesign], list[torch.Tensor]]:
    generator = rng(seed)
    designs = [draw_design(size, 3, 4, kind=kind, generator=generator) for _ in range(n)]
    values = [
        d.masks.flatten(1).double() @ TRUTH + 7 * i + noise * torch.randn(size, generator=generator).double()
        for i, d in enumerate(designs)
    ]
    return designs, values


@pytest.mark.parametrize("kind", ["iid", "antithetic"])
def test_too_few_masks_a_prompt_are_enough_together(kind: str) -> None:
    designs, values = runs(kind, 8, 6, 0.0)
    with pytest.raises(DesignError):
        fit_heads(designs[0], values[0], estimator="ols", generator=rng())
    fit = fit_pooled(designs, values, estimator="ols", generator=rng())
    np.testing.assert_allclose(fit.theta.ravel(), TRUTH, atol=1e-9)
    np.testing.assert_allclose(fit.intercept, 7 * np.arange(8), atol=1e-9)
    np.testing.assert_allclose(fit.r2, 1.0)
    np.testing.assert_allclose(fit.predict(designs[3].masks, 3), values[3], atol=1e-8)
    assert fit.n_masks.tolist() == [6] * 8


@pytest.mark.parametrize("kind", ["iid", "antithetic"])
def test_is_least_squares_with_intercepts(kind: str) -> None:
    designs, values = runs(kind, 3, 30, 1.0)
    fit = fit_pooled(designs, values, estimator="ols", generator=rng())
    x = np.concatenate([d.masks.flatten(1).double().numpy() for d in designs])
    x, y = np.concatenate([x, np.eye(3).repeat(30, axis=0)], axis=1), torch.cat(values).numpy()
    full = LinearRegression(fit_intercept=False).fit(x, y)
    np.testing.assert_allclose(fit.theta.ravel(), full.coef_[:12], atol=1e-9)
    np.testing.assert_allclose(fit.intercept, full.coef_[12:], atol=1e-9)


def test_of_one_prompt_it_is_that_prompt() -> None:
    (design,), (values,) = runs("antithetic", 1, 60, 1.0)
    one, pooled = (
        fit_heads(design, values, generator=rng(3)),
        fit_pooled([design], [values], generator=rng(3)),
    )
    np.testing.assert_array_equal(pooled.theta, one.theta)
    np.testing.assert_array_equal(pooled.interval, one.interval)
    assert pooled.r2[0] == pytest.approx(one.r2) and pooled.intercept[0] == pytest.approx(one.intercept)


@pytest.mark.parametrize("kind", ["iid", "antithetic"])
def test_intervals_cover(kind: str) -> None:
    covered = []
    for seed in range(60):
        designs, values = runs(kind, 4, 20, 1.0, seed)
        fit = fit_pooled(designs, values, estimator="ols", confidence=0.9, n_boot=200, generator=rng(seed))
        low, high = fit.interval.reshape(2, -1)
        covered.append((low <= TRUTH.numpy()) & (TRUTH.numpy() <= high))
    assert 0.86 < np.mean(covered) < 0.94  # 720 intervals, a standard error of .011


def test_a_prior_helps_where_masks_are_few() -> None:
    designs, values = runs("antithetic", 4, 8, 2.0)
    plain, helped = (
        fit_pooled(designs, values, estimator=estimator, prior=prior, generator=rng())
        for estimator, prior in (("ridge", None), ("prior_ridge", TRUTH.numpy().reshape(3, 4)))
    )
    error = lambda fit: np.abs(fit.theta.ravel() - TRUTH.numpy()).mean()  # noqa: E731
    assert error(helped) < error(plain) and helped.estimator == "prior_ridge"


def test_what_cannot_be_pooled() -> None:
    designs, values = runs("iid", 3, 12, 1.0)
    fit: Any = lambda d, v: fit_pooled(d, v, generator=rng())  # noqa: E731
    with pytest.raises(DesignError, match="3 designs and 2 series"):
        fit(designs, values[:2])
    with pytest.raises(DesignError, match=r"sample 1: .* one value per mask"):
        fit(designs, [values[0], values[1][:5], values[2]])
    with pytest.raises(DesignError, match="sample 2: the metric is 1 under all 12 masks"):
        fit(designs, [*values[:2], torch.ones(12)])
    values[1][4] = torch.inf
    with pytest.raises(NonFiniteError, match=r"sample 1: .*mask 4"):
        fit(designs, values)
    other = draw_design(12, 3, 4, kind="antithetic", generator=rng())
    with pytest.raises(DesignError, match="cannot join"):
        fit([designs[0], other], [values[0], values[2]])


@pytest.mark.parametrize("kind", ["iid", "antithetic"])
def test_halves_of_one_prompt_are_those_of_a_single_fit(kind: str) -> None:
    (design,), (values,) = runs(kind, 1, 80, 1.0)
    half, everything = design.pair % 2, torch.zeros(80, dtype=torch.long)
    pooled = split_half_pooled(design, everything, half, values)
    assert pooled == pytest.approx(split_half(design, values))
    assert pooled[0] < pooled[1] < 1


def test_what_differs_between_prompts_is_in_both_halves() -> None:
    dealt = draw_dealt(192, 2, 3, 4, kind="hadamard", generator=rng())
    other = -TRUTH.flip(0)
    x = dealt.design.masks.flatten(1).double()
    values = torch.where(dealt.sample == 0, x @ TRUTH, x @ other) + 5.0 * dealt.sample
    _, reliability = split_half_pooled(dealt.design, dealt.sample, dealt.half, values)
    assert reliability > 0.9
    apart = split_half_pooled(dealt.design, dealt.sample, dealt.sample, values)  # a prompt in each half
    assert apart[0] == pytest.approx(float(np.corrcoef(TRUTH, other)[0, 1]), abs=1e-6)


def test_halves_see_noise_and_a_single_mask_says_nothing() -> None:
    dealt = draw_dealt(60, 20, 3, 4, kind="iid", generator=rng())  # three masks each
    x = dealt.design.masks.flatten(1).double() @ TRUTH
    noise = torch.randn(60, generator=rng(2)).double()
    clean, noisy = (
        split_half_pooled(dealt.design, dealt.sample, dealt.half, x + scale * noise, estimator="ridge")[1]
        for scale in (0.0, 3.0)
    )
    assert noisy < 0.8 < clean
    with pytest.raises(DesignError, match="always kept or always ablated"):
        few = dealt.design.subset(torch.arange(4))
        split_half_pooled(few, dealt.sample[:4], dealt.half[:4], x[:4])
