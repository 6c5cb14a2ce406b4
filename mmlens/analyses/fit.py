"""Linear surrogate of a metric over head masks: coefficients, intervals, and how far to trust them.

1. Reduce the masks to independent units. For complementary pairs that is half the difference of the two runs:
   their sum does not depend on the coefficients, and everything of even order cancels in the difference.
2. Solve least squares with a ridge penalty for a grid of penalties, 0 (plain least squares) among them.
3. Choose the penalty by the exact error on units left out of the fit, one at a time (PRESS); least squares,
   which does not shrink large effects, stays unless the best penalty beats it by more than one standard
   error.
4. Interval per head: wild bootstrap over units, on leverage-corrected residuals.
5. Judge: R2 and Pearson on masks that were not fitted; correlation of the coefficients of two halves.

Source: head attribution (arXiv 2509.17588) fits least squares; the penalty's choice, the intervals and the
reliability figures are ours. Wild bootstrap: Wu 1986; leverage correction: MacKinnon & White 1985 (HC2).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from mmlens.analyses.design import MaskDesign
from mmlens.errors import DesignError, NonFiniteError

Estimator = Literal["auto", "ols", "ridge"]
Array = np.ndarray

_PENALTIES = tuple(10.0 ** (k / 4) for k in range(-16, 13))
"""Ridge penalties tried, as multiples of the mean eigenvalue of the Gram matrix."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadFit:
    """A linear surrogate, metric(mask) ~ intercept + sum of theta over the kept heads.

    Attributes:
        theta: effect of keeping a head, in the metric's unit; positive = removing it lowers the metric.
        interval: lower and upper end per head, for one head at a time (no correction for many heads).
        intercept: prediction with every head ablated.
        r2: share of the metric's variance over the fitted masks that the surrogate explains.
        estimator: ``ols`` or ``ridge``, as chosen.
        penalty: ridge penalty on theta (0 for least squares), in units of the Gram matrix.
        n_masks: masks fitted.
    """

    theta: Float[Array, "layer head"]
    interval: Float[Array, "bound layer head"]
    intercept: float
    r2: float
    estimator: Literal["ols", "ridge"]
    penalty: float
    n_masks: int

    def predict(self, masks: Bool[Tensor, "mask layer head"]) -> Float[Array, " mask"]:
        """The surrogate's prediction, in the metric's unit."""
        return masks.flatten(1).double().numpy() @ self.theta.ravel() + self.intercept


@dataclass(frozen=True, kw_only=True, eq=False)
class _Units:
    """Independent observations of a linear model without intercept, and the spectrum of their Gram matrix."""

    x: Float[Array, "unit factor"]
    y: Float[Array, " unit"]
    basis: Float[Array, "factor factor"]
    eigenvalues: Float[Array, " factor"]
    base_leverage: float  # of the mean that was taken out
    spare: int  # degrees of freedom that the mean took

    @property
    def full_rank(self) -> bool:
        return bool(self.eigenvalues[0] > 1e-9 * self.eigenvalues[-1])

    def shrinkage(self, penalty: float) -> Float[Array, " factor"]:
        return self.eigenvalues / (self.eigenvalues + penalty)

    def theta(self, penalty: float) -> Float[Array, " factor"]:
        return self.basis @ ((self.basis.T @ (self.x.T @ self.y)) / (self.eigenvalues + penalty))

    def leverage(self, penalty: float) -> Float[Array, " unit"]:
        return self.base_leverage + (self.x @ self.basis) ** 2 @ (1.0 / (self.eigenvalues + penalty))

    def left_out(self, penalty: float) -> Float[Array, " unit"]:
        """Squared error on each unit when it alone is left out of the fit."""
        room = 1.0 - self.leverage(penalty)
        exact = room < 1e-9  # fitted exactly, so nothing predicts it
        error = (self.y - self.x @ self.theta(penalty)) / np.where(exact, 1.0, room)
        return np.where(exact, np.inf, error**2)

    def spare_dof(self, penalty: float) -> float:
        return len(self.y) - self.spare - float(self.shrinkage(penalty).sum())


def fit_heads(
    design: MaskDesign,
    values: Float[Tensor, " mask"],
    *,
    estimator: Estimator = "auto",
    confidence: float = 0.95,
    n_boot: int = 1000,
    generator: torch.Generator,
) -> HeadFit:
    """Fits the linear surrogate of a metric over head masks.

    Args:
        design: the masks that were run.
        values: the metric under each of them, in its unit.
        estimator: ``ols``, ``ridge``, or ``auto``: least squares unless ridge predicts left-out units better
            by more than one standard error.
        confidence: coverage of the interval of one head.
        n_boot: bootstrap draws behind the interval.
        generator: source of the bootstrap's randomness.

    Returns:
        Coefficients with intervals. Least-squares intervals keep their coverage for every head. Ridge
        intervals add the expected shrinkage to the bootstrap's spread: they hold on average over heads, while
        the largest effects may lie above them.

    Raises:
        NonFiniteError: a value is NaN or infinite.
        DesignError: too few masks, a metric that never changes, or a head that is always or never kept.
    """
    y = _checked(design, values, estimator, confidence)
    units = _reduce(design, y)
    penalty = _choose_penalty(units, estimator)
    theta = units.theta(penalty)
    half = _half_width(units, penalty, confidence, n_boot, generator)
    x = design.masks.flatten(1).double().numpy()
    intercept = float(y.mean() - x.mean(0) @ theta)
    shape = design.masks.shape[1:]
    return HeadFit(
        theta=theta.reshape(shape),
        interval=np.stack([theta - half, theta + half]).reshape(2, *shape),
        intercept=intercept,
        r2=_r2(y, x @ theta + intercept),
        estimator="ridge" if penalty > 0 else "ols",
        penalty=float(penalty),
        n_masks=design.n_masks,
    )


def heldout_scores(
    fit: HeadFit, masks: Bool[Tensor, "mask layer head"], values: Float[Tensor, " mask"]
) -> tuple[float, float]:
    """R2 and Pearson correlation of a fit on masks that it has not seen.

    R2 is 1 - squared error / variance around the held-out mean; it is negative for a fit worse than that
    mean.

    Raises:
        NonFiniteError: a value is NaN or infinite.
        DesignError: fewer than three masks, or values that are all equal.
    """
    if len(values) < 3:
        raise DesignError(
            f"{len(values)} held-out masks cannot judge a fit; use at least 3 (better 64 or more)."
        )
    y = _finite_and_varying(values)
    predicted = fit.predict(masks)
    if np.ptp(predicted) == 0:
        raise DesignError(
            "the surrogate predicts one value for every held-out mask; all its coefficients are 0."
        )
    return _r2(y, predicted), float(np.corrcoef(y, predicted)[0, 1])


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
        correlation between the coefficients from all masks and those of a fresh set of the same number.

    Raises:
        DesignError: a half is too small to fit.
    """
    thetas = []
    halves = design.halves()
    for index in halves:
        half = design.subset(index)
        units = _reduce(half, _checked(half, values[index], estimator, 0.5))
        thetas.append(units.theta(_choose_penalty(units, estimator)))
    r = float(np.corrcoef(*thetas)[0, 1])
    ratio = design.n_masks / len(halves[0])
    return r, ratio * r / (1 + (ratio - 1) * r) if r > 0 else r


def _checked(design: MaskDesign, values: Tensor, estimator: str, confidence: float) -> Float[Array, " mask"]:
    if estimator not in get_args(Estimator):
        raise DesignError(
            f"estimator {estimator!r} is unknown; choose one of {', '.join(get_args(Estimator))}."
        )
    if not 0.0 < confidence < 1.0:
        raise DesignError(f"confidence={confidence} must lie strictly between 0 and 1, for example 0.95.")
    if values.shape != (design.n_masks,):
        raise DesignError(
            f"{tuple(values.shape)} values for {design.n_masks} masks: one value per mask is needed."
        )
    if design.n_masks < 4:
        raise DesignError(f"{design.n_masks} masks cannot be fitted; use n_masks='auto' or at least 4.")
    frozen = (design.masks == design.masks[:1]).all(0).nonzero().tolist()
    if frozen:
        layer, head = frozen[0]
        raise DesignError(
            f"{len(frozen)} heads are always kept or always ablated in these {design.n_masks} masks (the "
            "first: "
            f"layer {layer}, head {head}), so their effect cannot be estimated; draw more masks."
        )
    return _finite_and_varying(values)


def _finite_and_varying(values: Float[Tensor, " mask"]) -> Float[Array, " mask"]:
    y = values.detach().cpu().double().numpy()
    if not np.isfinite(y).all():
        bad = np.flatnonzero(~np.isfinite(y))
        raise NonFiniteError(
            f"the metric is not finite for {len(bad)} of {len(y)} masks (the first: mask {bad[0]})."
        )
    if np.ptp(y) <= 1e-12 * max(1.0, np.abs(y).max()):
        raise DesignError(
            f"the metric is {y[0]:g} under all {len(y)} masks: ablating heads does not move it. Check that "
            "the "
            "prompt has text after the image and that the metric reads the intended answer."
        )
    return y


def _reduce(design: MaskDesign, y: Float[Array, " mask"]) -> _Units:
    x = design.masks.flatten(1).double().numpy()
    if design.paired:
        order = torch.argsort(design.pair, stable=True).numpy()
        first, second = order[0::2], order[1::2]
        x, y = (x[first] - x[second]) / np.sqrt(2), (y[first] - y[second]) / np.sqrt(2)
        base_leverage, spare = 0.0, 0
    else:
        x, y = x - x.mean(0), y - y.mean()
        base_leverage, spare = 1.0 / len(y), 1
    eigenvalues, basis = np.linalg.eigh(x.T @ x)
    eigenvalues = np.clip(eigenvalues, 0.0, None)
    return _Units(x=x, y=y, basis=basis, eigenvalues=eigenvalues, base_leverage=base_leverage, spare=spare)


def _choose_penalty(units: _Units, estimator: str) -> float:
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
    errors = {penalty * mean: units.left_out(penalty * mean) for penalty in _PENALTIES}
    best = min(errors, key=lambda penalty: errors[penalty].mean())
    if estimator == "auto" and units.full_rank:
        excess = units.left_out(0.0) - errors[best]
        if np.isfinite(excess).all() and excess.mean() <= excess.std() / np.sqrt(n_units):
            return 0.0  # not worse by more than one standard error
    return float(best)


def _half_width(
    units: _Units, penalty: float, confidence: float, n_boot: int, generator: torch.Generator
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


def _r2(y: Float[Array, " mask"], predicted: Float[Array, " mask"]) -> float:
    return float(1.0 - ((y - predicted) ** 2).sum() / ((y - y.mean()) ** 2).sum())
