import pytest
import torch

from mmlens.analyses.random_heads import layer_matched_rankings, ranking_of
from mmlens.errors import DesignError, NonFiniteError


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_ranking_by_hand() -> None:
    assert ranking_of(torch.tensor([[0.1, 3.0], [-1.0, 3.0]])).tolist() == [1, 3, 0, 2]
    with pytest.raises(NonFiniteError, match="no rank"):
        ranking_of(torch.tensor([[0.1, torch.nan]]))


def test_every_prefix_uses_as_many_heads_of_each_layer() -> None:
    ranking = torch.randperm(24, generator=rng())
    draws = layer_matched_rankings(ranking, 6, 20, generator=rng(1))
    assert draws.shape == (20, 24)
    assert torch.equal(draws // 6, (ranking // 6).expand(20, -1))
    assert all(sorted(draw.tolist()) == list(range(24)) for draw in draws)


def test_draws_are_uniform_within_the_layer_and_repeatable() -> None:
    ranking = torch.arange(8)
    draws = layer_matched_rankings(ranking, 4, 4000, generator=rng())
    counts = draws[:, 0].bincount(minlength=8)
    assert counts[4:].sum() == 0
    assert (counts[:4] - 1000).abs().max() < 150
    assert torch.equal(draws, layer_matched_rankings(ranking, 4, 4000, generator=rng()))


@pytest.mark.parametrize("ranking", [[0, 1, 1, 3], [0, 1, 2], [1, 2, 3, 4]])
def test_rankings_that_miss_a_head(ranking: list[int]) -> None:
    with pytest.raises(DesignError, match="each head once"):
        layer_matched_rankings(torch.tensor(ranking), 4, 2, generator=rng())
