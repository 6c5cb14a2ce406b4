from typing import Any

import pytest
import torch

from mmlens.engine import image_segment
from mmlens.engine.image_segment import read_by_all_heads, read_by_open_heads, readers_of

N_MASKS, N_QUERY, N_HEADS, D_HEAD, N_IMAGE, SCALE = 12, 3, 4, 8, 5, 0.3


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masks(share: float) -> torch.Tensor:
    return torch.rand(N_MASKS, N_HEADS, generator=torch.Generator().manual_seed(0)) < share


@pytest.mark.parametrize("n_kv", [4, 2, 1])
@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.1])
def test_open_heads_read_what_they_read_among_all(n_kv: int, softcap: float | None, share: float) -> None:
    q, keep = drawn(N_MASKS, N_QUERY, N_HEADS, D_HEAD, seed=1), masks(share)
    k, v = drawn(n_kv, N_IMAGE, D_HEAD, seed=2), drawn(n_kv, N_IMAGE, D_HEAD, seed=3)
    out, lse = read_by_all_heads(q, keep, k, v, SCALE, softcap)
    few, few_lse = read_by_open_heads(q, keep, k, v, SCALE, softcap)
    open_ = keep[:, None].expand(-1, N_QUERY, -1)
    torch.testing.assert_close(few[open_], out[open_], atol=1e-12, rtol=0)
    torch.testing.assert_close(few_lse[open_], lse[open_], atol=1e-12, rtol=0)
    assert few.isfinite().all()
    assert not few_lse.isnan().any()


def test_no_more_queries_read_than_the_masks_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def watched(q: torch.Tensor, *rest: Any) -> Any:
        read.append(q.shape[2])
        return attend(q, *rest)

    attend = image_segment.attend
    monkeypatch.setattr(image_segment, "attend", watched)
    q, keep = drawn(N_MASKS, N_QUERY, N_HEADS, D_HEAD, seed=1), masks(0.3)
    k, v = drawn(N_HEADS, N_IMAGE, D_HEAD, seed=2), drawn(N_HEADS, N_IMAGE, D_HEAD, seed=3)
    read_by_open_heads(q, keep, k, v, SCALE)
    assert read == [int(keep.sum(0).max()) * N_QUERY]
    assert read[0] < N_MASKS * N_QUERY


def test_one_row_for_all_masks_reads_once() -> None:
    q, keep = drawn(1, N_QUERY, N_HEADS, D_HEAD, seed=1), masks(0.3)
    k, v = drawn(N_HEADS, N_IMAGE, D_HEAD, seed=2), drawn(N_HEADS, N_IMAGE, D_HEAD, seed=3)
    out, _ = read_by_open_heads(q, keep, k, v, SCALE)
    torch.testing.assert_close(out, read_by_all_heads(q, keep, k, v, SCALE)[0], atol=0, rtol=0)


def test_readers_by_hand() -> None:
    """Two masks, four heads on two key-value heads: number = mask * 2 + head in the group."""
    keep = torch.tensor([[True, False, False, False], [True, True, False, True]])
    assert readers_of(keep, 2).T.tolist() == [
        [0, 2, 3],
        [3, 0, 1],
    ]  # 3 through the first, 1 through the second
    assert readers_of(torch.zeros_like(keep), 2).shape == (1, 2)
    assert readers_of(torch.ones_like(keep), 2).shape == (4, 2)
