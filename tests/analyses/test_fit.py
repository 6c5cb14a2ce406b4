import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, LinearRegression, Ridge

from mmlens.analyses.design import MaskDesign, draw_design
from mmlens.analyses.fit import fit_heads, heldout_scores, split_half
from mmlens.analyses.fit_units import reduced
from mmlens.analyses.left_out_choice import best_left_out
from mmlens.errors import DesignError, NonFiniteError

LAYERS, HEADS = 3, 4
TRUTH = torch.tensor([2.0, 1.5, 1.0, 0.5, *[0.0] * 8], dtype=torch.float64)
LAWS = [("iid", 100), ("antithetic", 96), ("hadamard", 96)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(kind: str, n: int, generator: torch.Generator) -> MaskDesign:
    return draw_design(n, LAYERS, HEADS, kind=kind, generator=generator)


def linear(masks: torch.Tensor, noise: float = 0.0, generator: torch.Generator | None = None) -> torch.Tensor:
    values = masks.flatten(1).double() @ TRUTH - 1.0
    return values + noise * torch.randn(len(masks), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("kind", "n"), LAWS)
@pytest.mark.parametrize("estimator", ["auto", "ols"])
def test_recovers_planted_coefficients(kind: str, n: int, estimator: str) -> None:
    design = drawn(kind, n, rng())
    fit = fit_heads(design, linear(design.masks), estimator=estimator, generator=rng())
    np.testing.assert_allclose(fit.theta.ravel(), TRUTH.numpy(), atol=1e-10)
    assert fit.intercept == pytest.approx(-1.0)
    assert fit.r2 == pytest.approx(1.0)
    assert fit.estimator == "ols" and fit.penalty == 0.0 and fit.n_masks == n


@pytest.mark.parametrize(("kind", "n"), LAWS)
def test_least_squares_is_that_of_scikit_learn(kind: str, n: int) -> None:
    generator = rng()
    design = drawn(kind, n, generator)
    values = linear(design.masks, 0.5, generator)
    fit = fit_heads(design, values, estimator="ols", generator=generator)
    x = design.masks.flatten(1).double().numpy()
    expected = LinearRegression().fit(x, values.numpy())
    np.testing.assert_allclose(fit.theta.ravel(), expected.coef_, atol=1e-10)
    assert fit.intercept == pytest.approx(expected.intercept_)
    assert fit.r2 == pytest.approx(expected.score(x, values.numpy()))
    np.testing.assert_allclose(fit.predict(design.masks), expected.predict(x), atol=1e-10)


@pytest.mark.parametrize(("kind", "n"), LAWS)
def test_ridge_is_that_of_scikit_learn(kind: str, n: int) -> None:
    generator = rng()
    design = drawn(kind, n, generator)
    values = linear(design.masks, 3.0, generator)
    fit = fit_heads(design, values, estimator="ridge", generator=generator)
    assert fit.estimator == "ridge" and fit.penalty > 0
    x = design.masks.flatten(1).double().numpy()
    expected = Ridge(alpha=fit.penalty).fit(x, values.numpy())
    np.testing.assert_allclose(fit.theta.ravel(), expected.coef_, atol=1e-10)


@pytest.mark.parametrize("kind", ["iid", "antithetic"])
def test_left_out_errors_are_those_of_refitting(kind: str) -> None:
    generator = rng()
    design = drawn(kind, 40, generator)
    values = linear(design.masks, 1.0, generator)
    penalty = 2.0
    units = reduced(design, values.numpy())
    claimed = units.left_out(penalty)
    for pair in (0, 7):
        inside = design.pair != pair
        x, y = design.masks.flatten(1).double().numpy(), values.numpy()
        if kind == "iid":
            model = Ridge(alpha=penalty).fit(x[inside], y[inside])
            error = (y[~inside] - model.predict(x[~inside]))[0] ** 2
        else:  # the difference of the two masks of a pair, over root two
            model = Ridge(alpha=penalty).fit(x[inside], y[inside])
            first, second = x[~inside]
            error = ((y[~inside][0] - y[~inside][1]) - model.coef_ @ (first - second)) ** 2 / 2
        assert claimed[pair] == pytest.approx(error)


def test_complements_remove_pairwise_interactions_entirely() -> None:
    design = drawn("hadamard", 48, rng())
    signs = design.masks.flatten(1).double() * 2 - 1
    weights = torch.randn(12, 12, generator=rng(1), dtype=torch.float64).triu(1)
    values = linear(design.masks) + torch.einsum("mi,ij,mj->m", signs, weights, signs)
    fit = fit_heads(design, values, estimator="ols", generator=rng())
    np.testing.assert_allclose(fit.theta.ravel(), TRUTH.numpy(), atol=1e-10)
    assert fit.r2 < 0.9  # the interactions are there; only theta is free of them


@pytest.mark.parametrize(("kind", "n"), [("iid", 60), ("antithetic", 64), ("hadamard", 48)])
def test_intervals_cover_the_truth_as_often_as_they_say(kind: str, n: int) -> None:
    generator, n_repeats = rng(), 120
    triples = torch.randn(12, 12, 12, generator=generator, dtype=torch.float64) * 0.05
    index = torch.arange(12)
    triples = triples * (index[:, None, None] < index[None, :, None]) * (index[None, :, None] < index)
    covered, width = [], []
    for _ in range(n_repeats):
        design = drawn(kind, n, generator)
        signs = design.masks.flatten(1).double() * 2 - 1
        bent = torch.einsum("mi,ijk,mj,mk->m", signs, triples, signs, signs)  # odd, so no design removes it
        values = linear(design.masks, 0.3, generator) + bent
        fit = fit_heads(design, values, estimator="ols", confidence=0.9, n_boot=400, generator=generator)
        low, high = fit.interval.reshape(2, -1)
        covered.append((low <= TRUTH.numpy()) & (TRUTH.numpy() <= high))
        width.append((high - low).mean())
    # 1440 intervals of one head each: a binomial standard error is .008 if heads are independent
    assert 0.86 < np.mean(covered) < 0.94
    assert np.mean(covered, axis=0).min() > 0.80
    assert np.mean(width) < 1.5


def test_wider_confidence_gives_wider_intervals_around_theta() -> None:
    design = drawn("hadamard", 96, rng())
    values = linear(design.masks, 1.0, rng(1))
    narrow, wide = (fit_heads(design, values, confidence=c, generator=rng()) for c in (0.5, 0.99))
    assert (np.diff(wide.interval, axis=0) > np.diff(narrow.interval, axis=0)).all()
    np.testing.assert_allclose(wide.interval.mean(0), wide.theta)


def test_auto_shrinks_when_masks_are_few_and_noise_is_large() -> None:
    design = drawn("iid", 16, rng())
    values = linear(design.masks, 3.0, rng(1))
    assert fit_heads(design, values, estimator="auto", generator=rng()).estimator == "ridge"


def test_ridge_intervals_hold_for_large_effects_too() -> None:
    generator, covered = rng(), []
    for _ in range(150):
        design = drawn("iid", 40, generator)
        fit = fit_heads(design, linear(design.masks, 1.5, generator), estimator="ridge", generator=generator)
        low, high = fit.interval.reshape(2, -1)
        assert ((low <= fit.theta.ravel()) & (fit.theta.ravel() <= high)).all()
        covered.append((low <= TRUTH.numpy()) & (TRUTH.numpy() <= high))
    assert np.mean(covered, axis=0).min() > 0.9  # a standard error of .018 per head
    assert 0.93 < np.mean(covered) < 0.985


def test_the_same_seed_gives_the_same_interval() -> None:
    design = drawn("hadamard", 48, rng())
    values = linear(design.masks, 1.0, rng(1))
    first, again = (fit_heads(design, values, generator=rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first.interval, again.interval)


def test_heldout_scores_by_hand() -> None:
    design = drawn("hadamard", 48, rng())
    fit = fit_heads(design, linear(design.masks), generator=rng())
    fresh = drawn("iid", 30, rng(3)).masks
    assert heldout_scores(fit, fresh, linear(fresh)) == pytest.approx((1.0, 1.0))
    wrong = 2 * linear(fresh)
    r2, pearson = heldout_scores(fit, fresh, wrong)
    predicted = linear(fresh).numpy()
    spread = ((wrong.numpy() - wrong.numpy().mean()) ** 2).sum()
    assert r2 == pytest.approx(1 - ((wrong.numpy() - predicted) ** 2).sum() / spread)
    assert pearson == pytest.approx(1.0)


def test_split_half_sees_noise() -> None:
    design = drawn("hadamard", 96, rng())
    assert split_half(design, linear(design.masks)) == pytest.approx((1.0, 1.0))
    half, full = split_half(design, linear(design.masks, 1.0, rng(1)))
    assert half < full < 1.0
    assert full == pytest.approx(2 * half / (1 + half))
    noise = torch.randn(96, generator=rng(2), dtype=torch.float64)
    assert abs(split_half(design, noise)[0]) < 0.7


def test_lasso_is_that_of_scikit_learn_and_keeps_the_interval_of_least_squares() -> None:
    design = drawn("antithetic", 96, rng())
    values = linear(design.masks, 2.0, rng(1))
    fit, plain = (fit_heads(design, values, estimator=e, generator=rng()) for e in ("lasso", "ols"))
    units = reduced(design, values.numpy())
    expected = Lasso(alpha=fit.penalty, fit_intercept=False).fit(units.x, units.y)
    np.testing.assert_allclose(fit.theta.ravel(), expected.coef_, atol=1e-3)
    assert fit.estimator == "lasso" and (fit.theta == 0).any()
    assert ((fit.interval[0] <= fit.theta) & (fit.theta <= fit.interval[1])).all()
    inside = (plain.interval[0] <= fit.theta) & (fit.theta <= plain.interval[1])
    np.testing.assert_array_equal(fit.interval[:, inside], plain.interval[:, inside])


def test_a_good_prior_is_shrunk_to_and_a_bad_one_left() -> None:
    design = drawn("iid", 20, rng())
    values, truth = linear(design.masks, 2.0, rng(1)), TRUTH.numpy().reshape(LAYERS, HEADS)
    alone, good = (fit_heads(design, values, prior=p, generator=rng()) for p in (None, truth + 0.1))
    assert good.estimator == "prior_ridge"
    assert np.abs(good.theta - truth).mean() < 0.7 * np.abs(alone.theta - truth).mean()
    many = drawn("hadamard", 96, rng())
    values = linear(many.masks, 0.5, rng(1))
    plain, bad = (fit_heads(many, values, prior=p, generator=rng()) for p in (None, -9 * truth))
    assert bad.estimator == "ols"
    np.testing.assert_array_equal(bad.theta, plain.theta)


def test_intervals_hold_however_wrong_the_prior_is() -> None:
    generator, covered = rng(), []
    prior = (
        (TRUTH + 0.5 * torch.randn(12, generator=generator, dtype=torch.float64))
        .numpy()
        .reshape(LAYERS, HEADS)
    )
    for _ in range(100):
        design = drawn("iid", 40, generator)
        values = linear(design.masks, 1.5, generator)
        fit = fit_heads(design, values, estimator="prior_ridge", prior=prior, generator=generator)
        low, high = fit.interval.reshape(2, -1)
        covered.append((low <= TRUTH.numpy()) & (TRUTH.numpy() <= high))
    assert np.mean(covered) > 0.92


@pytest.mark.parametrize(("estimator", "prior"), [("prior_ridge", -TRUTH), ("lasso", None), ("ridge", None)])
def test_fewer_masks_than_heads_still_get_intervals(estimator: str, prior: torch.Tensor | None) -> None:
    design = drawn("antithetic", 20, rng())
    values = linear(design.masks, 0.01, rng(1))
    around = None if prior is None else prior.numpy().reshape(LAYERS, HEADS)
    fit = fit_heads(design, values, estimator=estimator, prior=around, generator=rng())
    assert fit.estimator == estimator
    assert (fit.interval[0] < fit.theta).any() and np.isfinite(fit.interval).all()
    assert ((fit.interval[0] <= fit.theta) & (fit.theta <= fit.interval[1])).all()


def test_least_squares_without_a_spare_run_has_no_interval() -> None:
    design = drawn("hadamard", 24, rng())
    with pytest.raises(DesignError, match="12 independent runs for 12 heads leave nothing"):
        fit_heads(design, linear(design.masks, 1.0, rng(1)), estimator="ols", generator=rng())


def test_best_is_named_and_a_prior_is_asked_for() -> None:
    design = drawn("antithetic", 96, rng())
    values = linear(design.masks, 0.0)
    assert fit_heads(design, values, estimator="best", generator=rng()).estimator == "ols"
    with pytest.raises(DesignError, match="estimator='prior_ridge' shrinks towards a prior"):
        fit_heads(design, values, estimator="prior_ridge", generator=rng())


def test_halves_without_a_head_have_no_correlation() -> None:
    design = drawn("antithetic", 40, rng())
    noise = torch.randn(40, generator=rng(1), dtype=torch.float64)
    assert np.isfinite(split_half(design, linear(design.masks, 1.0, rng(2)), estimator="prior_ridge")).all()
    units = [reduced(design.subset(i), noise[i].numpy()) for i in design.halves()]
    empty = [np.ptp(best_left_out(one, kinds=("lasso",)).theta) == 0 for one in units]
    assert any(empty) and np.isnan(split_half(design, noise, estimator="lasso")).all()


def test_too_few_masks() -> None:
    design = drawn("hadamard", 24, rng())
    with pytest.raises(DesignError, match="12 independent runs for 12 heads leave nothing"):
        fit_heads(design, linear(design.masks, 1.0, rng()), estimator="ols", generator=rng())
    few = drawn("iid", 10, rng())
    with pytest.raises(
        DesignError, match=r"10 independent runs cannot determine 12 heads.*estimator='ridge'"
    ):
        fit_heads(few, linear(few.masks), estimator="ols", generator=rng())
    three = drawn("iid", 3, rng())
    with pytest.raises(DesignError, match="3 masks cannot be fitted"):
        fit_heads(three, linear(three.masks), generator=rng())


def test_a_head_that_is_never_ablated_is_named() -> None:
    design = drawn("iid", 50, rng())
    design.masks[:, 2, 1] = True
    with pytest.raises(DesignError, match="layer 2, head 1"):
        fit_heads(design, linear(design.masks), generator=rng())


def test_constant_and_non_finite_values() -> None:
    design = drawn("hadamard", 48, rng())
    with pytest.raises(DesignError, match="the metric is 3 under all 48 masks"):
        fit_heads(design, torch.full((48,), 3.0), generator=rng())
    values = linear(design.masks)
    values[5] = torch.nan
    with pytest.raises(NonFiniteError, match=r"1 of 48 masks \(the first: mask 5\)"):
        fit_heads(design, values, generator=rng())
    with pytest.raises(DesignError, match="one value per mask"):
        fit_heads(design, values[:40], generator=rng())


def test_confidence_must_be_a_probability() -> None:
    design = drawn("hadamard", 48, rng())
    with pytest.raises(DesignError, match="confidence=95"):
        fit_heads(design, linear(design.masks), confidence=95.0, generator=rng())
