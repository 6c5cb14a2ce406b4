"""How many masks, and which, for a fit that several prompts share: the first round and those after it.

1. Turn numbers of masks per prompt into numbers of all prompts together, and hold them against the rules for one prompt
   (``surrogate``).
2. First round: whole Hadamard blocks for every prompt if that is what was asked for, else one design dealt out
   (``dealt_design``); at least four masks per prompt.
3. Later rounds: a block for every prompt as soon as that is at most four times what has been run; until then as many
   again, dealt out.

Source: ours.
"""

from dataclasses import replace

import numpy as np
import torch

from mmlens.analyses.dealt_design import DealtDesign, draw_dealt, draw_own
from mmlens.analyses.design import block_size
from mmlens.analyses.fit_checks import check_varied
from mmlens.analyses.fit_units import joined, reduced
from mmlens.analyses.surrogate import SurrogatePlan
from mmlens.errors import DesignError

_FEWEST = 4  # masks of a prompt that ``fit_pooled`` takes
_STEP_TO_BLOCKS = 4
"""A block for every prompt is the next round if it has at most this many times the masks that have been run."""


def plan_for(asked: SurrogatePlan, n_samples: int, n_heads_total: int) -> SurrogatePlan:
    """The plan whose numbers of masks are those of all prompts together.

    Raises:
        DesignError: one prompt, or masks that cannot be dealt out or determine theta.
    """
    if n_samples < 2:
        raise DesignError(
            "one prompt has nothing to be pooled with; give two or more, or use head_attribution."
        )
    n_masks, most, law = asked.n_masks, asked.max_masks, asked.design
    if n_masks != "auto" and n_masks % 2:
        if law in ("hadamard", "antithetic"):
            raise DesignError(
                f"n_masks={n_masks} per prompt: design {law!r} comes in complementary pairs; give an even number."
            )
        law = "iid"
    if most is not None and most < _FEWEST:
        raise DesignError(f"max_masks={most}: every prompt needs at least {_FEWEST} masks.")
    plan = replace(
        asked,
        design=law,
        n_masks=n_masks if n_masks == "auto" else n_samples * n_masks,
        max_masks=None if most is None else n_samples * (most - most % 2),
    )
    try:
        plan.check(n_heads_total)
        if plan.most(n_heads_total) < (first := _first_size(plan, n_samples, n_heads_total)):
            raise DesignError(f"the first round has {first} masks; raise max_masks.")
    except DesignError as error:
        raise DesignError(f"{n_samples} prompts together: {error}") from error
    return plan


def _first_size(plan: SurrogatePlan, n_samples: int, n_heads_total: int) -> int:
    """Masks of the first round: as of one prompt, or more blocks where every prompt would not get enough."""
    size = plan.first_size(n_heads_total)
    if plan.n_masks != "auto":
        return size
    step = block_size(n_heads_total, plan.kind_for(n_heads_total))
    return max(size, -(-_FEWEST * n_samples // step) * step)


def first_round(
    plan: SurrogatePlan, n_samples: int, shape: tuple[int, int], generator: torch.Generator
) -> DealtDesign:
    """The masks of the first round, if they determine what is asked for.

    Raises:
        DesignError: they do not.
    """
    total = shape[0] * shape[1]
    size, kind = _first_size(plan, n_samples, total), plan.kind_for(total)
    try:
        step = n_samples * block_size(total, "hadamard")
        if kind == "hadamard" and plan.n_masks != "auto" and size % step == 0:
            dealt = draw_own(size // step, n_samples, *shape, generator=generator)
        else:
            dealt = draw_dealt(size, n_samples, *shape, kind=kind, keep=plan.keep, generator=generator)
        if plan.n_masks != "auto":
            check_varied(dealt.design)
        units = joined([reduced(part, np.zeros(part.n_masks)) for part in dealt.parts()])
        if plan.estimator == "ols" and not (units.full_rank and units.spare_dof(0.0) >= 1):
            raise DesignError(
                f"{size} masks ({kind}) do not determine {total} heads by least squares; use more, or ridge."
            )
    except DesignError as error:
        raise DesignError(f"{n_samples} prompts together: {error}") from error
    return dealt


def next_round(
    plan: SurrogatePlan,
    dealt: DealtDesign,
    shape: tuple[int, int],
    generator: torch.Generator,
    *,
    blocks: bool = False,
) -> DealtDesign | None:
    """More masks for every prompt; None if the plan allows no more.

    Args:
        plan: numbers of all prompts together.
        dealt: what has been run.
        shape: layers and heads.
        generator: source of randomness, on the CPU.
        blocks: whether prompts already have blocks of their own, to which nothing but such blocks may be added: masks
            that are dealt out would bring the noise back that they are free of.
    """
    total, n, ran = shape[0] * shape[1], dealt.n_samples, dealt.n_masks
    kind, size = dealt.design.kind, n * block_size(total, "hadamard")
    n_more = plan.more(total, ran)
    if n_more and kind == "hadamard" and size <= min(_STEP_TO_BLOCKS * ran, plan.most(total) - ran):
        return draw_own(1, n, *shape, generator=generator)
    law = {"kind": kind, "keep": plan.keep, "generator": generator}
    return draw_dealt(n_more, n, *shape, already=ran, **law) if n_more and not blocks else None
