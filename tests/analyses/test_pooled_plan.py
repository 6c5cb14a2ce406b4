"""Rounds of masks for several prompts: how many, which law, and what is refused."""

from typing import Any

import pytest
import torch

from mmlens.analyses.pooled_plan import first_round, next_round, plan_for
from mmlens.analyses.surrogate import SurrogatePlan
from mmlens.errors import DesignError

SHAPE = (3, 4)  # a Hadamard block has 24 masks


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def started(n: int, **options: Any) -> Any:
    plan = plan_for(SurrogatePlan(**options), n, 12)
    return plan, first_round(plan, n, SHAPE, rng())


def per_prompt(dealt: Any) -> list[int]:
    return [len(dealt.of(i)) for i in range(dealt.n_samples)]


@pytest.mark.parametrize(
    ("n", "options", "kind", "own", "masks"),
    [
        (3, {}, "hadamard", False, [16, 16, 16]),  # two blocks in all
        (20, {}, "hadamard", False, [6] * 8 + [4] * 12),  # four masks each at least, in whole blocks
        (4, {"n_masks": 6}, "hadamard", False, [6] * 4),
        (3, {"n_masks": 48}, "hadamard", True, [48] * 3),
        (3, {"n_masks": 10}, "antithetic", False, [10] * 3),
        (4, {"n_masks": 9}, "iid", False, [9] * 4),
        (4, {"n_masks": 24, "design": "antithetic"}, "antithetic", False, [24] * 4),
        (3, {"keep": 0.7}, "iid", False, [16] * 3),
    ],
)
def test_the_first_round(n: int, options: Any, kind: str, own: bool, masks: list[int]) -> None:
    _, dealt = started(n, **options)
    assert (dealt.design.kind, dealt.own, per_prompt(dealt)) == (kind, own, masks)


def test_a_block_for_everybody_as_soon_as_it_is_no_big_step() -> None:
    plan, dealt = started(3)
    second = next_round(plan, dealt, SHAPE, rng())
    assert second is not None and second.own and per_prompt(second) == [24] * 3
    third = next_round(plan, dealt.joined(second), SHAPE, rng(), blocks=True)
    assert third is not None and third.own
    plan, dealt = started(12)  # blocks for all are 288 masks, six times the first round
    second = next_round(plan, dealt, SHAPE, rng())
    assert second is not None and not second.own and per_prompt(second) == [4] * 12
    third = next_round(plan, dealt.joined(second), SHAPE, rng())
    assert third is not None and third.own


def test_there_is_an_end() -> None:
    plan, dealt = started(3, max_masks=20)  # 60 in all
    assert next_round(plan, dealt, SHAPE, rng()) is None
    plan, dealt = started(3, max_masks=25)  # 72, as pairs stay whole
    second = next_round(plan, dealt, SHAPE, rng())
    assert second is not None and not second.own and second.n_masks == 24
    assert per_prompt(dealt.joined(second)) == [24] * 3
    assert next_round(plan, dealt, SHAPE, rng(), blocks=True) is None  # no block fits
    plan, dealt = started(3, n_masks=8, estimator="ridge")
    assert next_round(plan, dealt, SHAPE, rng()) is None


def test_refusals_name_the_prompts() -> None:
    with pytest.raises(DesignError, match="one prompt has nothing to be pooled with"):
        started(1)
    with pytest.raises(DesignError, match=r"2 prompts together: n_masks=8 .* least squares"):
        started(2, n_masks=4, estimator="ols")
    with pytest.raises(DesignError, match=r"20 prompts together: the first round has 96 masks; raise max"):
        started(20, max_masks=4)
