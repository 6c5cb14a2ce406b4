"""Dealing: everybody gets the same, pairs stay whole, halves hold every prompt, and orthogonality survives."""

from typing import Any

import numpy as np
import pytest
import torch

from mmlens.analyses.dealt_design import draw_dealt, draw_own
from mmlens.analyses.fit_units import joined, reduced


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gram(dealt: Any) -> np.ndarray:
    parts = [reduced(part, np.zeros(part.n_masks)) for part in dealt.parts()]
    x = joined(parts).x
    return x.T @ x


@pytest.mark.parametrize(("kind", "n"), [("iid", 45), ("antithetic", 46), ("hadamard", 48)])
def test_shares_differ_by_one_unit_at_most_and_pairs_stay_whole(kind: Any, n: int) -> None:
    dealt = draw_dealt(n, 5, 3, 4, kind=kind, generator=rng())
    unit = 1 if kind == "iid" else 2
    counts = [len(dealt.of(i)) for i in range(5)]
    assert sum(counts) == dealt.n_masks == n and max(counts) - min(counts) <= unit
    for i in range(5):
        own = dealt.design.masks[dealt.of(i)]
        assert unit == 1 or bool((own[0::2] != own[1::2]).all())
        assert torch.equal(own, dealt.parts()[i].masks)


@pytest.mark.parametrize("kind", ["iid", "antithetic", "hadamard"])
def test_halves_hold_every_prompt_alike(kind: Any) -> None:
    dealt = draw_dealt(96, 4, 3, 4, kind=kind, generator=rng())
    for i in range(4):
        assert dealt.half[dealt.of(i)].sum() == 12
    pairs = [set(dealt.design.pair[dealt.half == half].tolist()) for half in (0, 1)]
    assert not pairs[0] & pairs[1]


def test_who_got_more_gets_less_the_next_time() -> None:
    first = draw_dealt(24, 5, 3, 4, kind="hadamard", generator=rng())
    both = first.joined(draw_dealt(24, 5, 3, 4, kind="hadamard", already=24, generator=rng(1)))
    assert sorted(len(first.of(i)) for i in range(5)) == [4, 4, 4, 6, 6]
    assert sorted(len(both.of(i)) for i in range(5)) == [8, 10, 10, 10, 10]
    assert len(both.design.pair.unique()) == 24  # pairs of the two rounds stay distinct


def test_dealt_blocks_stay_orthogonal_for_what_prompts_have_in_common() -> None:
    dealt = draw_dealt(48, 5, 3, 4, kind="hadamard", generator=rng())
    np.testing.assert_allclose(gram(dealt), 12 * np.eye(12), atol=1e-12)
    assert max(part.n_masks for part in dealt.parts()) == 10  # each by itself determines nothing


def test_rows_are_dealt_in_random_order() -> None:
    first, again, other = (
        draw_dealt(24, 5, 3, 4, kind="hadamard", generator=rng(seed)).design.masks for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("n_blocks", [1, 2])
def test_own_blocks_are_orthogonal_for_each_prompt(n_blocks: int) -> None:
    dealt = draw_own(n_blocks, 3, 3, 4, generator=rng())
    parts = dealt.parts()
    assert [part.n_masks for part in parts] == [24 * n_blocks] * 3
    for part in parts:
        units = reduced(part, np.zeros(part.n_masks))
        np.testing.assert_allclose(units.x.T @ units.x, 6 * n_blocks * np.eye(12), atol=1e-12)
    assert not torch.equal(parts[0].masks, parts[1].masks)
    assert all(dealt.half[dealt.of(i)].sum() == 12 * n_blocks for i in range(3))


def test_two_rounds_of_own_blocks_are_each_others_halves() -> None:
    first, second = (draw_own(1, 3, 3, 4, generator=rng(seed)) for seed in (0, 1))
    both = first.in_half(0).joined(second.in_half(1))
    assert both.own and both.half.tolist() == [0] * 72 + [1] * 72
    assert not first.joined(draw_dealt(24, 3, 3, 4, kind="hadamard", generator=rng())).own
    assert torch.equal(first.in_half(1).design.masks, first.design.masks)
