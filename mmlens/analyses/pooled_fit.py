"""One surrogate for a set of prompts: the same coefficients for all of them, an intercept for each.

1. Reduce every prompt's masks to independent units by themselves (``fit_units``); that takes each intercept out.
2. Solve for one theta over the units of all prompts, with the estimators and intervals of a single prompt (``fit``).
3. Put the intercepts back, and say for each prompt how much of its metric the common theta explains.

With ``n`` prompts each needs about ``1 / n`` of the masks. The interval is about these prompts, masks drawn anew; it
does not say how theta would vary over other prompts. Where the prompts use different heads, theta is their mean,
weighted by their numbers of masks, and the r2 of single prompts tells.

Source: least squares with one intercept per group (the within estimator) is classical; pooling over prompts is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlens.analyses.design import MaskDesign
from mmlens.analyses.fit import Estimator, agreement, check_confidence, solve
from mmlens.analyses.fit_checks import check_varied, determination, finite_and_varying
from mmlens.analyses.fit_units import joined, reduced
from mmlens.analyses.left_out_choice import Fitted
from mmlens.errors import DesignError, MMLensError

Array = np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class PooledFit:
    """A common surrogate, metric of a prompt (mask) ~ the prompt's intercept + sum of theta over the kept heads.

    Attributes:
        theta: effect of keeping a head, in the metric's unit; positive = removing it lowers the metric.
        interval: lower and upper end per head, for one head at a time, for these prompts.
        intercept: of each prompt, the prediction with every head ablated.
        r2: of each prompt, the share of the metric's variance over its masks that the common surrogate explains.
        estimator: as chosen.
        penalty: see ``HeadFit``.
        n_masks: masks of each prompt.
    """

    theta: Float[Array, "layer head"]
    interval: Float[Array, "bound layer head"]
    intercept: Float[Array, " sample"]
    r2: Float[Array, " sample"]
    estimator: Fitted
    penalty: float
    n_masks: Int[Array, " sample"]

    def predict(self, masks: Bool[Tensor, "mask layer head"], sample: int) -> Float[Array, " mask"]:
        """The surrogate's prediction for one of the prompts, in the metric's unit."""
        return masks.flatten(1).double().numpy() @ self.theta.ravel() + self.intercept[sample]


def fit_pooled(
    designs: Sequence[MaskDesign],
    values: Sequence[Float[Tensor, " mask"]],
    *,
    estimator: Estimator = "auto",
    prior: Float[Array, "layer head"] | None = None,
    confidence: float = 0.95,
    n_boot: int = 1000,
    generator: torch.Generator,
) -> PooledFit:
    """Fits one theta to the masked runs of several prompts.

    Args:
        designs: the masks that were run, one design per prompt, all of one law; four masks or more each.
        values: the metric under each of them, in its unit.
        estimator: as in ``fit_heads``.
        prior: coefficients to shrink towards.
        confidence: coverage of the interval of one head.
        n_boot: bootstrap draws behind the interval.
        generator: source of the bootstrap's randomness.

    Raises:
        NonFiniteError: a value is NaN or infinite.
        DesignError: too few masks in all, a prompt whose metric never changes, designs that do not fit each other, or a
            head that is always or never kept.
    """
    check_confidence(estimator, confidence)
    everything = _together(designs, values)
    check_varied(everything)
    measured = []
    for i, one in enumerate(values):
        try:
            measured.append(finite_and_varying(one))
        except MMLensError as error:
            raise type(error)(f"sample {i}: {error}") from error
    units = joined([reduced(design, y) for design, y in zip(designs, measured, strict=True)])
    solved = solve(units, estimator, None if prior is None else prior.ravel())
    flat = [design.masks.flatten(1).double().numpy() @ solved.theta for design in designs]
    intercept = np.array([y.mean() - x.mean() for x, y in zip(flat, measured, strict=True)])
    fitted = zip(measured, flat, intercept, strict=True)
    shape = everything.masks.shape[1:]
    return PooledFit(
        theta=solved.theta.reshape(shape),
        interval=solved.interval(confidence, n_boot, generator).reshape(2, *shape),
        intercept=intercept,
        r2=np.array([determination(y, x + level) for y, x, level in fitted]),
        estimator=solved.kind,
        penalty=float(solved.penalty),
        n_masks=np.array([design.n_masks for design in designs]),
    )


def split_half_pooled(
    design: MaskDesign,
    sample: Int[Tensor, " mask"],
    half: Int[Tensor, " mask"],
    values: Float[Tensor, " mask"],
    *,
    estimator: Estimator = "auto",
) -> tuple[float, float]:
    """Correlation of the common theta between two halves of every prompt's masks, and what it implies for all.

    Args:
        design: the masks that were run, of all prompts.
        sample: number of the prompt that each was run with.
        half: 0 or 1, the half that each belongs to; pairs stay together.
        values: the metric under each of them.
        estimator: as in ``fit_heads``, chosen in each half by itself; no prior takes part.

    Returns:
        As ``split_half``. What differs between prompts is in both halves alike, so that masks alone can make them
        disagree.

    Raises:
        DesignError: a half is too small to fit, or ablates or keeps some head throughout.
    """
    thetas, halves = [], [(half == which).nonzero()[:, 0] for which in (0, 1)]
    kind = "ridge" if estimator == "prior_ridge" else estimator
    for index in halves:
        check_varied(design.subset(index))
        parts = []
        for one in sample[index].unique():
            own = index[sample[index] == one]
            if design.paired or len(own) > 1:  # of a single independent mask, the intercept leaves nothing
                parts.append(reduced(design.subset(own), values[own].double().numpy()))
        thetas.append(solve(joined(parts), kind).theta)
    return agreement(*thetas, ratio=design.n_masks / min(map(len, halves)))


def _together(designs: Sequence[MaskDesign], values: Sequence[Tensor]) -> MaskDesign:
    if not designs or len(designs) != len(values):
        raise DesignError(
            f"{len(designs)} designs and {len(values)} series of values: one of each per prompt."
        )
    together = designs[0]
    for i, (design, one) in enumerate(zip(designs, values, strict=True)):
        if one.shape != (design.n_masks,) or design.n_masks < 4:
            raise DesignError(
                f"sample {i}: {tuple(one.shape)} values for {design.n_masks} masks; one value per mask is needed, and "
                "four masks or more."
            )
        together = together.joined(design) if i else together
    return together
