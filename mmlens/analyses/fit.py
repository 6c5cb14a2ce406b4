"""Linear surrogate of a metric over head masks: coefficients, intervals, and how far to trust them.

1. Reduce the masks to independent units (``fit_units``). For complementary pairs that is half the difference of the two
   runs: their sum does not depend on the coefficients, and everything of even order cancels in the difference.
2. Solve least squares with a ridge penalty for a grid of penalties, 0 (plain least squares) among them; around a
   prior, if one is given, as well as around 0.
3. Choose the penalty by the exact error on units left out of the fit, one at a time (PRESS); least squares,
   which does not shrink large effects, stays unless the best penalty beats it by more than one standard
   error. Lasso, and the choice among all estimators, go by folds (``left_out_choice``).
4. Interval per head: wild bootstrap over units, on leverage-corrected residuals.
5. Judge: R2 and Pearson on masks that were not fitted; correlation of the coefficients of two halves.

Source: head attribution (arXiv 2509.17588) fits least squares; the penalty's choice, the prior, the intervals and the
reliability figures are ours. Wild bootstrap: Wu 1986; leverage correction: MacKinnon & White 1985 (HC2).
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from mmlens.analyses.design import MaskDesign
from mmlens.analyses.fit_checks import check_varied, determination, finite_and_varying
from mmlens.analyses.fit_units import Units, reduced
from mmlens.analyses.left_out_choice import PENALTIES, Fitted, best_left_out
from mmlens.errors import DesignError

Estimator = Literal["auto", "ols", "ridge", "prior_ridge", "lasso", "best"]
Array = np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadFit:
    """A linear surrogate, metric(mask) ~ intercept + sum of theta over the kept heads.

    Attributes:
        theta: effect of keeping a head, in the metric's unit; positive = removing it lowers the metric.
        interval: lower and upper end per head, for one head at a time (no correction for many heads).
        intercept: prediction with every head ablated.
        r2: share of the metric's variance over the fitted masks that the surrogate explains.
        estimator: ``ols``, ``ridge``, ``prior_ridge`` or ``lasso``, as chosen.
        penalty: ridge penalty on theta (0 for least squares), in units of the Gram matrix; for lasso, the penalty on
            the sum of sizes as scikit-learn counts it.
        n_masks: masks fitted.
    """

    theta: Float[Array, "layer head"]
    interval: Float[Array, "bound layer head"]
    intercept: float
    r2: float
    estimator: Fitted
    penalty: float
    n_masks: int

    def predict(self, masks: Bool[Tensor, "mask layer head"]) -> Float[Array, " mask"]:
        """The surrogate's prediction, in the metric's unit."""
        return masks.flatten(1).double().numpy() @ self.theta.ravel() + self.intercept


@dataclass(frozen=True, kw_only=True, eq=False)
class Coefficients:
    """A solved linear model, and the ridge problem that its intervals come from.

    Attributes:
        theta: one coefficient per factor.
        kind: the estimator.
        penalty: of that estimator, in its own units.
        units: the observations of the ridge problem behind the intervals.
        width_penalty: its penalty.
        centre: its coefficients.
    """

    theta: Float[Array, " factor"]
    kind: Fitted
    penalty: float
    units: Units
    width_penalty: float
    centre: Float[Array, " factor"]

    def interval(
        self, confidence: float, n_boot: int, generator: torch.Generator
    ) -> Float[Array, "bound factor"]:
        """Lower and upper end per factor, widened until it holds the coefficient itself."""
        half = _half_width(self.units, self.width_penalty, confidence, n_boot, generator)
        low, high = self.centre - half, self.centre + half
        return np.stack([np.minimum(low, self.theta), np.maximum(high, self.theta)])


def fit_heads(
    design: MaskDesign,
    values: Float[Tensor, " mask"],
    *,
    estimator: Estimator = "auto",
    prior: Float[Array, "layer head"] | None = None,
    confidence: float = 0.95,
    n_boot: int = 1000,
    generator: torch.Generator,
) -> HeadFit:
    """Fits the linear surrogate of a metric over head masks.

    Args:
        design: the masks that were run.
        values: the metric under each of them, in its unit.
        estimator: ``ols``, ``ridge``, ``prior_ridge`` (shrinks towards ``prior``), ``lasso``; ``auto``: least squares
            unless ridge, around 0 or the prior, predicts left-out units better by more than one standard error; or
            ``best``: whichever of all has the least error on left-out folds.
        prior: coefficients to shrink towards, from other evidence than these masks, in the metric's unit.
        confidence: coverage of the interval of one head.
        n_boot: bootstrap draws behind the interval.
        generator: source of the bootstrap's randomness.

    Returns:
        Coefficients with intervals. Least-squares intervals keep their coverage for every head. Whatever shrinks
        (ridge, around a prior or not, and lasso) takes the interval of least squares, widened until it holds its own
        coefficient. Where the masks do not determine all heads it is that of ridge, with the expected shrinkage added
        to the bootstrap's spread: it holds on average over heads, while the largest effects may lie above it, and
        around a prior it is only as good as the prior.

    Raises:
        NonFiniteError: a value is NaN or infinite.
        DesignError: too few masks, a metric that never changes, or a head that is always or never kept.
    """
    y = checked_values(design, values, estimator, confidence)
    solved = solve(reduced(design, y), estimator, None if prior is None else prior.ravel())
    bounds = solved.interval(confidence, n_boot, generator)
    theta = solved.theta
    x = design.masks.flatten(1).double().numpy()
    intercept = float(y.mean() - x.mean(0) @ theta)
    shape = design.masks.shape[1:]
    return HeadFit(
        theta=theta.reshape(shape),
        interval=bounds.reshape(2, *shape),
        intercept=intercept,
        r2=determination(y, x @ theta + intercept),
        estimator=solved.kind,
        penalty=float(solved.penalty),
        n_masks=design.n_masks,
    )


def solve(units: Units, estimator: str, prior: Float[Array, " factor"] | None = None) -> Coefficients:
    """Coefficients of some units by one estimator, or by the one that a rule chooses.

    Args:
        units: independent observations.
        estimator: as in ``fit_heads``.
        prior: coefficients to shrink towards.

    Raises:
        DesignError: the units are too few for the estimator, or it needs a prior and there is none.
    """
    if estimator == "prior_ridge" and prior is None:
        raise DesignError(
            "estimator='prior_ridge' shrinks towards a prior; give one, for example prior='gates'."
        )
    if estimator in ("lasso", "best"):
        chosen = best_left_out(units, prior=prior, kinds=("lasso",) if estimator == "lasso" else None)
        if chosen.kind == "lasso":
            penalty = 0.0 if units.full_rank else _wide_enough(units, _choose_penalty(units, "ridge"))
            centre = units.theta(penalty)
            return Coefficients(
                theta=chosen.theta, kind="lasso", penalty=chosen.penalty, units=units, width_penalty=penalty,
                centre=centre,
            )  # fmt: skip
        return _ridge(units, chosen.penalty, prior if chosen.kind == "prior_ridge" else None)
    if prior is None or estimator in ("ols", "ridge"):
        return _ridge(units, _choose_penalty(units, estimator), None)
    moved = units.around(prior)
    penalty = _choose_penalty(moved, "ridge")
    if estimator == "auto":
        plain = _choose_penalty(units, "ridge")
        errors, around = units.left_out(plain), moved.left_out(penalty)
        towards = bool(around.mean() < errors.mean())
        if units.full_rank and _as_good(units, around if towards else errors):
            return _ridge(units, 0.0, None)
        if not towards:
            return _ridge(units, plain, None)
    return _ridge(units, penalty, prior)


def _ridge(units: Units, penalty: float, prior: Float[Array, " factor"] | None) -> Coefficients:
    around = units if prior is None else units.around(prior)
    theta = around.theta(penalty) + (0.0 if prior is None else prior)
    kind: Fitted = "prior_ridge" if prior is not None else "ridge" if penalty > 0 else "ols"
    told: dict[str, Any] = {"units": around, "width_penalty": penalty, "centre": theta}
    if penalty > 0 and units.full_rank and units.spare_dof(0.0) >= 1:
        told = {"units": units, "width_penalty": 0.0, "centre": units.theta(0.0)}
    elif penalty > 0:
        wide = _wide_enough(around, penalty)
        centre = around.theta(wide) + (0.0 if prior is None else prior)
        told = {"units": around, "width_penalty": wide, "centre": centre}
    return Coefficients(theta=theta, kind=kind, penalty=penalty, **told)


def _wide_enough(units: Units, penalty: float) -> float:
    """The penalty, or the next larger one that leaves a degree of freedom to estimate the noise from."""
    tried = [penalty, *(scale * units.eigenvalues.mean() for scale in PENALTIES)]
    enough = (float(one) for one in tried if one >= penalty and units.spare_dof(one) >= 1)
    return next(enough, penalty)


def heldout_scores(
    fit: HeadFit, masks: Bool[Tensor, "mask layer head"], values: Float[Tensor, " mask"]
) -> tuple[float, float]:
    """R2 and Pearson correlation of a fit on masks that it has not seen.

    Raises:
        NonFiniteError, DesignError: as ``prediction_scores``.
    """
    return prediction_scores(fit.predict(masks), values)


def prediction_scores(
    predicted: Float[Array, " mask"], values: Float[Tensor, " mask"]
) -> tuple[float, float]:
    """R2 and Pearson correlation of predictions.

    R2 is 1 - squared error / variance around the held-out mean; it is negative for a fit worse than that
    mean.

    Raises:
        NonFiniteError: a value is NaN or infinite.
        DesignError: fewer than three masks, or values or predictions that are all equal.
    """
    if len(values) < 3:
        raise DesignError(
            f"{len(values)} held-out masks cannot judge a fit; use at least 3 (better 64 or more)."
        )
    y = finite_and_varying(values)
    if np.ptp(predicted) == 0:
        raise DesignError(
            "the surrogate predicts one value for every held-out mask; all its coefficients are 0."
        )
    return determination(y, predicted), float(np.corrcoef(y, predicted)[0, 1])


def split_half(
    design: MaskDesign, values: Float[Tensor, " mask"], *, estimator: Estimator = "auto"
) -> tuple[float, float]:
    """Correlation of theta between two halves of the masks, and what it implies for all of them.

    Args:
        design: the masks that were run.
        values: the metric under each of them.
        estimator: as in ``fit_heads``, chosen in each half by itself.

    Returns:
        Pearson r of the halves' coefficients over heads, and its Spearman-Brown value: the expected
        correlation between the coefficients from all masks and those of a fresh set of the same number. NaN if a
        half has the same coefficient for every head. No prior takes part: one that both halves share would make
        them agree whatever the masks say.

    Raises:
        DesignError: a half is too small to fit.
    """
    thetas = []
    estimator = "ridge" if estimator == "prior_ridge" else estimator
    halves = design.halves()
    for index in halves:
        half = design.subset(index)
        units = reduced(half, checked_values(half, values[index], estimator, 0.5))
        thetas.append(solve(units, estimator).theta)
    return agreement(*thetas, ratio=design.n_masks / len(halves[0]))


def agreement(
    first: Float[Array, " factor"], second: Float[Array, " factor"], *, ratio: float
) -> tuple[float, float]:
    """Pearson r of the coefficients of two parts, and the Spearman-Brown value of ``ratio`` times as many masks.

    NaN if a part has the same coefficient for every head, as lasso may.
    """
    if min(np.ptp(first), np.ptp(second)) == 0:
        return float("nan"), float("nan")
    r = float(np.corrcoef(first, second)[0, 1])
    return r, ratio * r / (1 + (ratio - 1) * r) if r > 0 else r


def checked_values(
    design: MaskDesign, values: Tensor, estimator: str, confidence: float
) -> Float[Array, " mask"]:
    """Values of a design as an array, if a fit can be made of them.

    Raises:
        NonFiniteError, DesignError: as ``fit_heads``.
    """
    check_confidence(estimator, confidence)
    if values.shape != (design.n_masks,):
        raise DesignError(
            f"{tuple(values.shape)} values for {design.n_masks} masks: one value per mask is needed."
        )
    if design.n_masks < 4:
        raise DesignError(f"{design.n_masks} masks cannot be fitted; use n_masks='auto' or at least 4.")
    check_varied(design)
    return finite_and_varying(values)


def check_confidence(estimator: str, confidence: float) -> None:
    """The estimator is known and the confidence a probability.

    Raises:
        DesignError: one is not.
    """
    if estimator not in get_args(Estimator):
        raise DesignError(
            f"estimator {estimator!r} is unknown; choose one of {', '.join(get_args(Estimator))}."
        )
    if not 0.0 < confidence < 1.0:
        raise DesignError(f"confidence={confidence} must lie strictly between 0 and 1, for example 0.95.")


def _choose_penalty(units: Units, estimator: str) -> float:
    n_units, n_factors = units.x.shape
    if estimator == "ols":
        if not units.full_rank:
            raise DesignError(
                f"{n_units} independent runs cannot determine {n_factors} heads by least squares; draw more "
                "masks "
                "or use estimator='ridge'."
            )
        return 0.0
    mean = units.eigenvalues.mean()
    errors = {penalty * mean: units.left_out(penalty * mean) for penalty in PENALTIES}
    best = min(errors, key=lambda penalty: errors[penalty].mean())
    if estimator == "auto" and units.full_rank and _as_good(units, errors[best]):
        return 0.0
    return float(best)


def _as_good(units: Units, errors: Float[Array, " unit"]) -> bool:
    """Whether least squares is not worse than these left-out errors by more than one standard error."""
    excess = units.left_out(0.0) - errors
    return bool(np.isfinite(excess).all() and excess.mean() <= excess.std() / np.sqrt(len(units.y)))


def _half_width(
    units: Units, penalty: float, confidence: float, n_boot: int, generator: torch.Generator
) -> Float[Array, " factor"]:
    dof = units.spare_dof(penalty)
    if dof < 1:
        raise DesignError(
            f"{len(units.y)} independent runs for {units.x.shape[1]} heads leave nothing to estimate "
            "intervals "
            "from; draw more masks."
        )
    residual = units.y - units.x @ units.theta(penalty)
    residual = residual / np.sqrt(np.clip(1.0 - units.leverage(penalty), 1e-9, None))
    solve = units.basis / (units.eigenvalues + penalty) @ units.basis.T
    influence = (units.x * residual[:, None]) @ solve  # what one unit's residual adds to theta
    signs = torch.randint(0, 2, (n_boot, len(residual)), generator=generator).double().numpy() * 2 - 1
    draws = signs @ influence
    if penalty > 0:  # what shrinkage takes away: as estimated, and its spread under the prior that it implies
        theta = units.theta(penalty)
        noise = float(((units.y - units.x @ theta) ** 2).sum()) / dof
        lost_sd = np.sqrt(noise * penalty) * np.sqrt((solve**2).sum(0))
        normal = torch.randn(n_boot, len(theta), generator=generator, dtype=torch.float64).numpy()
        draws = draws + penalty * (solve @ theta) + lost_sd * normal
    small_sample = stats.t.ppf((1 + confidence) / 2, dof) / stats.norm.ppf((1 + confidence) / 2)
    return np.quantile(np.abs(draws), confidence, axis=0) * small_sample
