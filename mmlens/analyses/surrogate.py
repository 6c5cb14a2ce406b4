"""One prompt's linear surrogate over head masks: draw, run, fit, grow until reliable, judge on fresh masks.

1. Run the two ends: no head ablated, every head ablated.
2. Draw head masks and run them.
3. Unless the number of masks was given: double them until the coefficients of two halves agree well enough.
4. Fit the surrogate.
5. Run fresh i.i.d. masks and see how well it predicts them.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mmlens.analyses.design import DesignKind, MaskDesign, block_size, draw_design
from mmlens.analyses.fit import Estimator, HeadFit, fit_heads, heldout_scores, split_half
from mmlens.engine import MaskedRuns
from mmlens.errors import DesignError

_MAX_GROWTH = 8
"""An automatic design ends at this many times its first size."""


@dataclass(frozen=True, kw_only=True)
class SurrogatePlan:
    """How to sample and fit.

    Attributes:
        n_masks: head masks to fit, or ``auto`` to grow until ``reliability`` is reached.
        keep: probability that a mask keeps a head.
        design: a law of ``mmlens.analyses.design``, or ``auto``: Hadamard blocks where they fit, else
            antithetic pairs, else i.i.d.
        estimator: as in ``fit_heads``.
        n_heldout: fresh masks to judge by.
        confidence: coverage of each head's interval.
        reliability: Spearman-Brown split-half correlation at which ``n_masks="auto"`` stops.
    """

    n_masks: int | Literal["auto"] = "auto"
    keep: float = 0.5
    design: DesignKind | Literal["auto"] = "auto"
    estimator: Estimator = "auto"
    n_heldout: int = 128
    confidence: float = 0.95
    reliability: float = 0.95

    def __post_init__(self) -> None:
        """Rejects numbers that cannot be meant."""
        if self.n_masks != "auto" and (not isinstance(self.n_masks, int) or self.n_masks < 4):
            raise DesignError(f"n_masks={self.n_masks!r}: give 'auto' or a whole number of at least 4.")
        if self.n_heldout < 3:
            raise DesignError(
                f"n_heldout={self.n_heldout}: at least 3 fresh masks are needed, better 64 or more."
            )
        if not 0.0 < self.reliability < 1.0:
            raise DesignError(f"reliability={self.reliability} must lie strictly between 0 and 1.")

    def kind_for(self, n_heads_total: int) -> DesignKind:
        """The law of the design for a model with this many heads."""
        if self.design != "auto":
            return self.design
        if self.keep != 0.5:
            return "iid"
        if self.n_masks == "auto" or self.n_masks % block_size(n_heads_total, "hadamard") == 0:
            return "hadamard"
        return "iid" if self.n_masks % 2 else "antithetic"

    def first_size(self, n_heads_total: int) -> int:
        """Masks of the first round: two Hadamard blocks, about four per head."""
        return 2 * block_size(n_heads_total, "hadamard") if self.n_masks == "auto" else self.n_masks


@dataclass(frozen=True, kw_only=True, eq=False)
class Surrogate:
    """A fitted surrogate and the evidence for it.

    Attributes:
        fit: coefficients and intervals.
        kind: law of the design.
        clean: the metric with no head ablated.
        ablated: the metric with every head ablated.
        r2: coefficient of determination on fresh masks.
        pearson: Pearson correlation on fresh masks.
        predicted: the surrogate's prediction for the fresh masks.
        measured: the metric under the fresh masks.
        split_half: correlation of the coefficients of two halves; NaN if a half is too small to fit.
        reliability: its Spearman-Brown value, for all masks.
    """

    fit: HeadFit
    kind: DesignKind
    clean: float
    ablated: float
    r2: float
    pearson: float
    predicted: Float[np.ndarray, " mask"]
    measured: Float[np.ndarray, " mask"]
    split_half: float
    reliability: float


def fit_surrogate(
    runs: MaskedRuns, plan: SurrogatePlan, *, generator: torch.Generator, progress: tqdm | None = None
) -> Surrogate:
    """Samples head masks of one prompt and fits the surrogate.

    Args:
        runs: the prompt, ready to run.
        plan: how to sample and fit.
        generator: source of randomness, on the CPU.
        progress: bar that is moved on by the number of runs; its total grows when more masks are drawn.

    Raises:
        DesignError: the plan does not fit this model, or the metric does not react to head masks.
        NonFiniteError: the metric is not finite under some mask.
    """
    n_layers, n_heads = runs.shape
    total, law = n_layers * n_heads, {"keep": plan.keep, "generator": generator}
    # 1. ends
    ends = torch.stack([torch.ones(runs.shape, dtype=torch.bool), torch.zeros(runs.shape, dtype=torch.bool)])
    clean, ablated = runs(ends, progress=progress).tolist()
    # 2. masks; the fresh ones first, so that they do not depend on what the fit needs
    fresh = draw_design(plan.n_heldout, n_layers, n_heads, kind="iid", **law).masks
    kind, size = plan.kind_for(total), plan.first_size(total)
    design = draw_design(size, n_layers, n_heads, kind=kind, **law)
    values = runs(design.masks, progress=progress)
    # 3. more masks
    agreement = _agreement(design, values, plan.estimator)
    while (
        plan.n_masks == "auto"
        and design.n_masks < _MAX_GROWTH * size
        and not agreement[1] >= plan.reliability
    ):
        more = draw_design(design.n_masks, n_layers, n_heads, kind=kind, **law)
        if progress is not None:
            progress.total += more.n_masks
        design, values = design.joined(more), torch.cat([values, runs(more.masks, progress=progress)])
        agreement = _agreement(design, values, plan.estimator)
    # 4. fit
    fit = fit_heads(design, values, estimator=plan.estimator, confidence=plan.confidence, generator=generator)
    # 5. fresh masks
    measured = runs(fresh, progress=progress)
    r2, pearson = heldout_scores(fit, fresh, measured)
    return Surrogate(
        fit=fit,
        kind=kind,
        clean=clean,
        ablated=ablated,
        r2=r2,
        pearson=pearson,
        predicted=fit.predict(fresh),
        measured=measured.numpy(),
        split_half=agreement[0],
        reliability=agreement[1],
    )


def _agreement(
    design: MaskDesign, values: Float[Tensor, " mask"], estimator: Estimator
) -> tuple[float, float]:
    try:
        return split_half(design, values, estimator=estimator)
    except DesignError:  # half of the masks is too few to fit; the whole may do
        return float("nan"), float("nan")
