import itertools

import numpy as np
import pytest
import torch

from mmlens.analyses.design import MaskDesign, block_size, draw_design, hadamard_matrix, hadamard_order
from mmlens.errors import DesignError


def drawn(
    n_masks: int, n_layers: int, n_heads: int, kind: str, seed: int = 0, keep: float = 0.5
) -> MaskDesign:
    generator = torch.Generator().manual_seed(seed)
    return draw_design(n_masks, n_layers, n_heads, kind=kind, keep=keep, generator=generator)


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 20, 24, 32, 40, 48, 60, 72, 96, 104])
def test_hadamard_rows_and_columns_are_orthogonal(order: int) -> None:
    matrix = hadamard_matrix(order)
    assert set(np.unique(matrix)) <= {-1, 1}
    assert (matrix @ matrix.T == order * np.eye(order)).all()
    assert (matrix.T @ matrix == order * np.eye(order)).all()


def test_hadamard_order_is_the_next_constructible_one() -> None:
    assert [hadamard_order(n) for n in (1, 3, 5, 9, 13, 25, 33, 1024)] == [1, 4, 8, 12, 16, 32, 40, 1024]
    with pytest.raises(DesignError, match="order 10 is implemented; next: 12"):
        hadamard_matrix(10)


@pytest.mark.parametrize(("n_layers", "n_heads"), [(4, 5), (3, 4), (2, 7)])
def test_a_hadamard_block_is_orthogonal_to_itself_and_to_the_intercept(n_layers: int, n_heads: int) -> None:
    n = n_layers * n_heads
    block = drawn(block_size(n, "hadamard"), n_layers, n_heads, "hadamard")
    signs = block.masks.flatten(1).long() * 2 - 1
    assert torch.equal(signs.T @ signs, block.n_masks * torch.eye(n, dtype=torch.long))
    assert (signs.sum(0) == 0).all()


def test_complements_cancel_pairwise_interactions() -> None:
    signs = drawn(24, 3, 4, "hadamard").masks.flatten(1).long() * 2 - 1
    for a, b, c in itertools.product(range(12), repeat=3):
        if b != c:
            assert int((signs[:, a] * signs[:, b] * signs[:, c]).sum()) == 0


def test_masks_have_the_promised_shape_and_dtype() -> None:
    for kind, n in (("iid", 7), ("antithetic", 8), ("hadamard", 24)):
        design = drawn(n, 3, 4, kind)
        assert design.masks.shape == (n, 3, 4)
        assert design.masks.dtype == torch.bool


def test_iid_keeps_with_the_given_probability() -> None:
    rate = drawn(2000, 2, 5, "iid", keep=0.9).masks.float().mean(0)
    assert (rate - 0.9).abs().max() < 0.03


@pytest.mark.parametrize("kind", ["antithetic", "hadamard"])
def test_pairs_are_complements(kind: str) -> None:
    design = drawn(48, 3, 4, kind)
    for number in design.pair.unique():
        first, second = design.masks[design.pair == number]
        assert torch.equal(first, ~second)


def test_blocks_differ_and_a_seed_repeats_them() -> None:
    design = drawn(48, 3, 4, "hadamard")
    assert design.block.tolist() == [0] * 24 + [1] * 24
    assert not torch.equal(design.masks[:24], design.masks[24:])
    assert torch.equal(design.masks, drawn(48, 3, 4, "hadamard").masks)
    assert not torch.equal(design.masks, drawn(48, 3, 4, "hadamard", seed=1).masks)


def test_joined_designs_keep_pairs_and_blocks_apart() -> None:
    joined = drawn(24, 3, 4, "hadamard").joined(drawn(48, 3, 4, "hadamard", seed=1))
    assert joined.n_masks == 72
    assert joined.block.tolist() == [0] * 24 + [1] * 24 + [2] * 24
    assert joined.pair.bincount().tolist() == [2] * 36
    with pytest.raises(DesignError, match="kind, keep and model shape must agree"):
        joined.joined(drawn(4, 3, 4, "iid"))


@pytest.mark.parametrize(("kind", "n"), [("iid", 9), ("antithetic", 12), ("hadamard", 24), ("hadamard", 72)])
def test_halves_are_disjoint_equal_and_keep_pairs_whole(kind: str, n: int) -> None:
    design = drawn(n, 3, 4, kind)
    first, second = design.halves()
    assert len(first) == len(second) > 0
    assert not set(first.tolist()) & set(second.tolist())
    assert not set(design.pair[first].tolist()) & set(design.pair[second].tolist())
    if kind == "hadamard" and n > 24:
        assert not set(design.block[first].tolist()) & set(design.block[second].tolist())


@pytest.mark.parametrize(
    ("n", "kind", "keep", "message"),
    [
        (50, "hadamard", 0.5, "multiples of 24 masks, not 50; use 48 or 72"),
        (10, "hadamard", 0.5, "use 24, or"),
        (7, "antithetic", 0.5, "multiples of 2"),
        (8, "antithetic", 0.9, "use design='iid'"),
        (24, "hadamard", 0.9, "use design='iid'"),
        (8, "iid", 1.0, "strictly between 0 and 1"),
        (0, "iid", 0.5, "at least 1"),
    ],
)
def test_impossible_requests(n: int, kind: str, keep: float, message: str) -> None:
    with pytest.raises(DesignError, match=message):
        drawn(n, 3, 4, kind, keep=keep)
