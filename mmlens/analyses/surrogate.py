"""One prompt's linear surrogate over head masks: draw, run, fit, grow until reliable, judge on fresh masks.

1. Refuse a plan that cannot be fitted; run the two ends: no head ablated, every head ablated.
2. Draw head masks and run them.
3. Unless the number of masks was given: draw more, as many again or a block at a time, until the coefficients of two
   halves agree well enough or the most masks allowed are used.
4. Fit the surrogate, around a prior if there is one.
5. Run fresh i.i.d. masks and see how well it predicts them.
"""

import time
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from mmlens.analyses.design import DesignKind, MaskDesign, block_size, draw_design
from mmlens.analyses.fit import Estimator, HeadFit, fit_heads, heldout_scores, split_half
from mmlens.analyses.fit_checks import check_varied, finite_and_varying
from mmlens.engine import MaskedRuns
from mmlens.errors import DesignError

Growth = Literal["double", "block"]

_MAX_GROWTH = 8
"""An automatic design ends at this many times its first size, unless ``max_masks`` says otherwise."""
_N_PROBES = 8
_MIN_UNITS = 10  # what left_out_choice deals into folds


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
        max_masks: most masks that ``n_masks="auto"`` may fit; None for eight times its first round.
        growth: how ``n_masks="auto"`` goes on: ``double``, or by one ``block`` (about two masks per head).
    """

    n_masks: int | Literal["auto"] = "auto"
    keep: float = 0.5
    design: DesignKind | Literal["auto"] = "auto"
    estimator: Estimator = "auto"
    n_heldout: int = 128
    confidence: float = 0.95
    reliability: float = 0.95
    max_masks: int | None = None
    growth: Growth = "double"

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
        if self.growth not in get_args(Growth):
            raise DesignError(
                f"growth={self.growth!r} is unknown; choose one of {', '.join(get_args(Growth))}."
            )
        if self.max_masks is not None and self.n_masks != "auto":
            raise DesignError(f"max_masks={self.max_masks} is for n_masks='auto'; leave one of the two out.")

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

    def most(self, n_heads_total: int) -> int:
        """Most masks that are fitted."""
        first = self.first_size(n_heads_total)
        grown = _MAX_GROWTH * first if self.max_masks is None else self.max_masks
        return first if self.n_masks != "auto" else grown

    def more(self, n_heads_total: int, n_masks: int) -> int:
        """Masks of the next round after ``n_masks``; 0 if there is none."""
        step = block_size(n_heads_total, self.kind_for(n_heads_total))
        wanted = n_masks if self.growth == "double" else block_size(n_heads_total, "hadamard")
        return max(min(wanted, self.most(n_heads_total) - n_masks), 0) // step * step

    def check(self, n_heads_total: int) -> None:
        """Refuses, before anything is run, a plan whose masks cannot determine what is asked for.

        Raises:
            DesignError: too few masks for the estimator, or ``max_masks`` lies below the first round.
        """
        size, kind = self.first_size(n_heads_total), self.kind_for(n_heads_total)
        if self.most(n_heads_total) < size:
            raise DesignError(
                f"max_masks={self.max_masks} lies below the first round for {n_heads_total} heads, {size} masks; "
                "raise it, or give n_masks."
            )
        runs = size - 1 if kind == "iid" else size // 2
        if self.estimator == "ols" and runs <= n_heads_total:
            needed = n_heads_total + 2 if kind == "iid" else 2 * n_heads_total + 2
            raise DesignError(
                f"n_masks={size} ({kind}) gives {runs} independent runs for {n_heads_total} heads; least squares "
                f"needs at least {needed} masks, or use estimator='ridge'."
            )
        if self.estimator in ("lasso", "best") and runs < _MIN_UNITS:
            raise DesignError(
                f"n_masks={size} ({kind}) gives {runs} independent runs; estimator={self.estimator!r} needs at "
                f"least {_MIN_UNITS}."
            )


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
        n_runs: runs of the model, fresh masks and ends among them.
        seconds: wall-clock time of runs and fits.
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
    n_runs: int
    seconds: float

    @property
    def masks_per_second(self) -> float:
        """Runs of the model over wall-clock time."""
        return self.n_runs / self.seconds


def fit_surrogate(
    runs: MaskedRuns,
    plan: SurrogatePlan,
    *,
    generator: torch.Generator,
    prior: Float[np.ndarray, "layer head"] | None = None,
    progress: tqdm | None = None,
) -> Surrogate:
    """Samples head masks of one prompt and fits the surrogate.

    Args:
        runs: the prompt, ready to run.
        plan: how to sample and fit.
        generator: source of randomness, on the CPU.
        prior: coefficients to shrink towards, for the estimators that can.
        progress: bar that is moved on by the number of runs; its total grows when more masks are drawn.

    Raises:
        DesignError: the plan does not fit this model, or the metric does not react to head masks.
        NonFiniteError: the metric is not finite under some mask.
    """
    started = time.perf_counter()
    n_layers, n_heads = runs.shape
    total, law = n_layers * n_heads, {"keep": plan.keep, "generator": generator}
    # 1. ends; what cannot be drawn or fitted is refused first. Fresh masks do not depend on what the fit needs.
    plan.check(total)
    fresh = draw_design(plan.n_heldout, n_layers, n_heads, kind="iid", **law).masks
    kind = plan.kind_for(total)
    design = draw_design(plan.first_size(total), n_layers, n_heads, kind=kind, **law)
    if plan.n_masks != "auto":
        check_varied(design)
    clean, ablated = measured_ends(runs, fresh, progress)
    # 2. masks
    values = runs(design.masks, progress=progress)
    # 3. more masks
    agreement = _agreement(design, values, plan.estimator)
    while not agreement[1] >= plan.reliability and (n_more := plan.more(total, design.n_masks)):
        more = draw_design(n_more, n_layers, n_heads, kind=kind, **law)
        if progress is not None:
            progress.total += more.n_masks
        design, values = design.joined(more), torch.cat([values, runs(more.masks, progress=progress)])
        agreement = _agreement(design, values, plan.estimator)
    # 4. fit
    shared = {"estimator": plan.estimator, "prior": prior, "confidence": plan.confidence}
    fit = fit_heads(design, values, **shared, generator=generator)
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
        n_runs=2 + design.n_masks + len(fresh),
        seconds=time.perf_counter() - started,
    )


def measured_ends(
    runs: MaskedRuns, fresh: Bool[Tensor, "mask layer head"], progress: tqdm | None
) -> tuple[float, float]:
    """The metric with no head and with every head ablated; if they are equal, some masks must move it.

    Args:
        runs: the prompt, ready to run.
        fresh: masks of which the first are tried if the ends are equal.
        progress: bar that is moved on by the number of runs.

    Raises:
        DesignError: neither the ends nor those masks move the metric.
        NonFiniteError: the metric is not finite under some mask.
    """
    ends = torch.stack([torch.ones(runs.shape, dtype=torch.bool), torch.zeros(runs.shape, dtype=torch.bool)])
    clean, ablated = runs(ends, progress=progress).tolist()
    if clean == ablated:
        finite_and_varying(runs(fresh[:_N_PROBES]))
    return clean, ablated


def _agreement(
    design: MaskDesign, values: Float[Tensor, " mask"], estimator: Estimator
) -> tuple[float, float]:
    try:
        return split_half(design, values, estimator=estimator)
    except DesignError:  # half of the masks is too few to fit; the whole may do
        return float("nan"), float("nan")
