"""Random heads from the same layers: what a ranking is worth beyond knowing which layers matter.

1. Take a ranking of heads.
2. Within each layer, permute the heads at random. Every prefix of the new ranking then has exactly as many
   heads in each layer as the same prefix of the original.

Source: layer-matched random heads as in Head Pursuit (arXiv 2510.21518); nesting the draws as rankings is
ours.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlens.errors import DesignError, NonFiniteError


def ranking_of(scores: Float[Tensor, "layer head"]) -> Int[Tensor, " rank"]:
    """Heads by falling score, as layer times heads-per-layer plus head; ties keep their order.

    Raises:
        NonFiniteError: a score is NaN or infinite.
    """
    if not bool(torch.isfinite(scores).all()):
        raise NonFiniteError("head scores hold NaN or infinity, which have no rank.")
    return scores.flatten().argsort(descending=True, stable=True)


def layer_matched_rankings(
    ranking: Int[Tensor, " rank"], n_heads: int, n_draws: int, *, generator: torch.Generator
) -> Int[Tensor, "draw rank"]:
    """Random rankings that use as many heads of each layer as ``ranking`` does, at every length.

    Args:
        ranking: heads in order, as ``ranking_of`` numbers them; all of them.
        n_heads: heads per layer.
        n_draws: how many.
        generator: source of randomness, on the CPU.

    Raises:
        DesignError: ``ranking`` is not a permutation of all heads.
    """
    if sorted(ranking.tolist()) != list(range(len(ranking))) or len(ranking) % n_heads:
        raise DesignError(f"a ranking must name each head once, as layer * {n_heads} + head.")
    n_layers = len(ranking) // n_heads
    swap = torch.rand(n_draws, n_layers, n_heads, generator=generator).argsort(dim=-1)
    swap = (swap + torch.arange(n_layers)[:, None] * n_heads).flatten(1)  # head -> its stand-in, per draw
    return swap[:, ranking]
