"""Sets of heads: choosing them by a score, drawing layer-matched random ones, keeping test prompts apart.

1. Rank the heads by the mean score over prompts.
2. Keep the top k, or the fewest whose scores add up to a share of all positive scores.
3. Do the same for resampled prompts: how far the choice hangs on which prompts were asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmlens.analyses.random_heads import layer_matched_rankings, ranking_of
from mmlens.analyses.samples import image_digests
from mmlens.config import ModelConfig
from mmlens.errors import DesignError, NonFiniteError, ShapeError
from mmlens.inputs import Inputs
from mmlens.result import HeadResult, PatchingResult, PooledAttributionResult
from mmlens.result.resampling import resampled_means

Scored = HeadResult | PatchingResult | np.ndarray | Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadSet:
    """A set of heads and where it came from.

    Attributes:
        mask: 1 = a head of the set.
        source: how it was chosen, in words.
        chosen_on: image digest and question of every prompt that the choice was based on.
        draws: the same choice on resampled prompts; empty if the scores were not per prompt.
    """

    mask: Bool[Tensor, "layer head"]
    source: str = "given"
    chosen_on: frozenset[tuple[str, str]] = frozenset()
    draws: Bool[Tensor, "draw layer head"] = field(
        default_factory=lambda: torch.zeros(0, 0, 0, dtype=torch.bool)
    )

    @property
    def heads(self) -> list[tuple[int, int]]:
        """Layer and number of its heads."""
        return [(int(layer), int(head)) for layer, head in self.mask.nonzero().tolist()]

    @property
    def stability(self) -> Float[Tensor, "layer head"]:
        """Share of resampled choices that hold each head; NaN if there are none."""
        return self.draws.float().mean(dim=0) if len(self.draws) else torch.full(self.mask.shape, torch.nan)

    def __len__(self) -> int:
        return int(self.mask.sum())


def choose_heads(
    scores: Scored, *, k: int | None = None, share: float | None = None, n_boot: int = 200, seed: int = 0
) -> HeadSet:
    """Steps 1-3.

    Args:
        scores: a result with a score per head (positive = removing it hurts, restoring it helps), or an array
            ``[layer, head]`` or ``[sample, layer, head]``.
        k: how many heads; or
        share: the fewest whose scores reach this share of all positive scores, above 0 and at most 1.
        n_boot: resampled choices.
        seed: of the resampling.

    Raises:
        DesignError: neither or both of ``k`` and ``share``, out of range, or no positive score to take a share of.
        ShapeError: the scores are not per head.
        NonFiniteError: a score is NaN or infinite.
    """
    values, words, chosen_on = _values(scores)
    if (k is None) == (share is None):
        raise DesignError(f"k={k}, share={share}: give one of them, how many heads or how much of the score.")
    n_heads = int(np.prod(values.shape[1:]))
    if k is not None and not 1 <= k < n_heads:
        raise DesignError(f"k={k}: a circuit has at least 1 head and fewer than all {n_heads}.")
    if share is not None and not 0 < share <= 1:
        raise DesignError(f"share={share} must lie above 0 and at most at 1.")
    # 1, 2
    mask = _chosen(values.mean(axis=0), k, share)
    # 3
    draws = torch.zeros(0, *mask.shape, dtype=torch.bool)
    if len(values) > 1 and n_boot > 0:
        means = resampled_means(values, n_boot, seed)
        draws = torch.stack([_chosen(mean, k, share) for mean in means])
    rule = f"top {k}" if k is not None else f"{share:g} of the positive score"
    return HeadSet(mask=mask, source=f"{words}, {rule}", chosen_on=chosen_on, draws=draws)


def random_sets(
    members: Bool[Tensor, "layer head"], n_draws: int, generator: torch.Generator
) -> Bool[Tensor, "draw layer head"]:
    """Sets with as many heads in every layer as ``members``; they may share heads with it."""
    ranking = ranking_of(members.double())
    draws = layer_matched_rankings(ranking, members.shape[1], n_draws, generator=generator)
    found = torch.zeros(n_draws, members.numel(), dtype=torch.bool)
    found.scatter_(1, draws[:, : int(members.sum())], True)
    return found.view(n_draws, *members.shape)


def as_head_sets(sets: Mapping[str, HeadSet | Tensor | np.ndarray], cfg: ModelConfig) -> dict[str, HeadSet]:
    """The sets, checked against the model.

    Raises:
        DesignError: no set, an empty one, or one of all heads.
        ShapeError: a set that is not boolean ``[layer, head]``.
    """
    if not sets:
        raise DesignError("no head set was given; name at least one: {'top 8': choose_heads(scores, k=8)}.")
    found = {}
    for name, one in sets.items():
        chosen = one if isinstance(one, HeadSet) else HeadSet(mask=torch.as_tensor(one))
        shape = (cfg.n_layers, cfg.n_heads)
        if chosen.mask.dtype != torch.bool or tuple(chosen.mask.shape) != shape:
            raise ShapeError(
                f"the set {name!r} is {chosen.mask.dtype} {list(chosen.mask.shape)}; expected Bool[layer, head] = "
                f"{list(shape)}."
            )
        if not 0 < len(chosen) < chosen.mask.numel():
            raise DesignError(
                f"the set {name!r} holds {len(chosen)} of {chosen.mask.numel()} heads; there is nothing to test."
            )
        found[str(name)] = chosen
    return found


def check_held_out(sets: Mapping[str, HeadSet], inputs: Inputs, allow: bool) -> dict[str, int]:
    """How many of these prompts each set was chosen on.

    Raises:
        DesignError: some, and that was not allowed.
    """
    questions = [prompt.question for prompt in inputs.prompts] or [""] * inputs.batch_size
    here = set(zip(image_digests(inputs), questions, strict=True))
    found = {name: len(here & one.chosen_on) for name, one in sets.items()}
    shared = [name for name, count in found.items() if count]
    if shared and not allow:
        raise DesignError(
            f"the set {shared[0]!r} was chosen on {found[shared[0]]} of these {inputs.batch_size} prompts; a circuit "
            "must be tested on others. Give others, or allow_overlap=True."
        )
    return found


def _values(
    scores: Scored,
) -> tuple[Float[np.ndarray, "sample layer head"], str, frozenset[tuple[str, str]]]:
    """Scores per prompt, what they are, and the prompts they come from."""
    words, chosen_on = "given scores", frozenset[tuple[str, str]]()
    if isinstance(scores, HeadResult | PatchingResult):
        data, info = scores.data[scores.main], scores.info
        if isinstance(scores, PooledAttributionResult):
            data = data.expand_dims("sample")
        if data.dims[1:] != ("layer", "head"):
            raise ShapeError(
                f"a circuit is chosen by a score per query head [sample, layer, head]; these are {list(data.dims)}."
            )
        values, words = np.asarray(data.values, np.float64), str(data.attrs.get("description", scores.kind))
        words = str(scores.data.attrs.get("method", words))
        asked: Sequence[str] = info.prompts or ("",) * len(info.image_sha256)
        chosen_on = frozenset(zip(info.image_sha256, asked, strict=True))
    else:
        values = np.asarray(scores, np.float64)
        values = values[None] if values.ndim == 2 else values
    if values.ndim != 3:
        raise ShapeError(
            f"scores have shape {list(values.shape)}; expected [layer, head] or [sample, layer, head]."
        )
    if not np.isfinite(values).all():
        raise NonFiniteError("head scores hold NaN or infinity, which have no rank.")
    return values, words, chosen_on


def _chosen(
    mean: Float[np.ndarray, "layer head"], k: int | None, share: float | None
) -> Bool[Tensor, "layer head"]:
    ranking = ranking_of(torch.from_numpy(mean))
    if k is None:
        sums = np.cumsum(np.clip(mean.ravel()[ranking.numpy()], 0, None))
        if sums[-1] <= 0:
            raise DesignError("no head has a positive score, so there is no share to take; choose by k.")
        k = int(np.searchsorted(sums, (share or 1.0) * sums[-1] * (1 - 1e-12))) + 1
    mask = torch.zeros(mean.size, dtype=torch.bool)
    mask[ranking[:k]] = True
    return mask.view(mean.shape)
