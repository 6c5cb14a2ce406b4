"""Do HookedVLM and the unmodified Hugging Face model compute the same logits?

A difference in float32 may be rounding or a small bug. The float64 rerun tells them apart: rounding shrinks
by nine orders of magnitude, a bug stays.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from mmlens.inputs import Inputs
from mmlens.model.hooked_vlm import HookedVLM
from mmlens.reference.hf import hf_logits, hf_own_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FLOAT32_TOLERANCE = 1e-5
FLOAT64_TOLERANCE = 1e-10


@final
@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """How far two models' logits are apart; every difference is the largest ``|Δlogit|`` at a token.

    Attributes:
        difference: as the model runs by default (fused attention).
        explicit_difference: with attention computed step by step, as Hugging Face's eager attention does;
            usually 0.
        rounding: between Hugging Face's own eager and fused attention: what rounding alone does to this
            model.
        float64_difference: after both models were rerun in float64; None if they were not.
        tolerance: what the first two may be.
        worst: sample and position of ``difference``.
        logit_std: standard deviation of the Hugging Face logits, the yardstick for all differences.
        n_positions: positions compared (padding left out).
        same_choice: fraction of positions where both put the same token first.
    """

    difference: float
    explicit_difference: float
    rounding: float
    float64_difference: float | None = None
    tolerance: float
    worst: tuple[int, int]
    logit_std: float
    n_positions: int
    same_choice: float

    @property
    def ok(self) -> bool:
        """True if no difference exceeds its tolerance."""
        within = max(self.difference, self.explicit_difference) <= self.tolerance
        return within and (self.float64_difference is None or self.float64_difference <= FLOAT64_TOLERANCE)

    def __str__(self) -> str:
        wide = "" if self.float64_difference is None else f"; float64 {self.float64_difference:.1e}"
        return (
            f"max |Δlogit| {self.difference:.1e} (allowed {self.tolerance:.0e}; explicit attention "
            f"{self.explicit_difference:.1e}{wide}), logit std {self.logit_std:.2f}"
        )


@torch.no_grad()
def parity(
    model: HookedVLM,
    hf_model: "PreTrainedModel",
    inputs: Inputs,
    *,
    tolerance: float | None = None,
    float64: bool = False,
) -> ParityReport:
    """Compares the logits of both models at every real position.

    Args:
        model: ours.
        hf_model: a Hugging Face LLaVA with the same weights; runs its own eager attention, positions given.
        inputs: a batch with pixels; left padding and several images are welcome.
        tolerance: for ``|Δlogit|`` in the models' own dtype; None is 1e-5, or four times the rounding of
            Hugging Face itself where that is more (deep models).
        float64: rerun both in float64. Copies the Hugging Face model's weights, at 8 bytes each.
    """
    real = inputs.attention_mask.bool()
    theirs = hf_own_logits(hf_model, inputs, "eager")[real]
    rounding = _distance(hf_own_logits(hf_model, inputs, "sdpa")[real], theirs)
    ours = model(inputs)[real].to(theirs)
    with explicit_attention(model):
        explicit = model(inputs)[real].to(theirs)
    worst = int((ours - theirs).abs().amax(dim=-1).argmax())
    sample, pos = real.nonzero()[worst].tolist()
    return ParityReport(
        difference=_distance(ours, theirs),
        explicit_difference=_distance(explicit, theirs),
        rounding=rounding,
        float64_difference=_float64_difference(hf_model, inputs) if float64 else None,
        tolerance=max(FLOAT32_TOLERANCE, 4 * rounding) if tolerance is None else tolerance,
        worst=(sample, pos),
        logit_std=float(theirs.float().std()),
        n_positions=len(theirs),
        same_choice=float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
    )


def _distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


@contextmanager
def explicit_attention(model: HookedVLM) -> Iterator[None]:
    """Lets our model compute scores and pattern step by step for the length of the block.

    That is what eager attention does; the fused kernel sums in another order, which differs in the last bits.
    """
    with model.hooks([(lambda name: name.endswith("hook_attn_scores"), _watch)]):
        yield


def _watch(tensor: Tensor, hook: Any) -> None:
    """A hook that only looks; that it is there selects explicit attention."""


def _float64_difference(hf_model: "PreTrainedModel", inputs: Inputs) -> float:
    wide, inputs = float64_copy(hf_model), inputs.to(dtype=torch.float64)
    real = inputs.attention_mask.bool()
    return _distance(HookedVLM.from_hf(wide)(inputs)[real], hf_logits(wide, inputs)[real])


def float64_copy(hf_model: "PreTrainedModel") -> "PreTrainedModel":
    """A copy of a Hugging Face Llama-based model that computes in float64 throughout.

    Converting the weights is not enough: Llama's RMSNorm computes in float32 whatever the model's dtype, so
    each norm is recomputed by a hook. Attention's softmax, which does the same, is replaced by
    :func:`hf_logits`. Rotary cosines stay those of float32 in both models.
    """
    wide = copy.deepcopy(hf_model).double()
    for module in wide.modules():
        if hasattr(module, "variance_epsilon"):
            module.register_forward_hook(_exact_rms_norm)
    return wide


def _exact_rms_norm(module: Any, args: tuple[Tensor], output: Tensor) -> Float[Tensor, "*rows d_model"]:
    x = args[0]
    return module.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
