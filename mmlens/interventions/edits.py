"""Interventions that replace an activation where they are told to: Zero, Scale, Mean, Patch.

Each is a frozen value: what to write, and at which site, layers, heads and positions. ``compile.py`` alone
turns them into hooks.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache

from mmlens.errors import InterventionError, ShapeError
from mmlens.inputs.selectors import Selector
from mmlens.interventions.sites import HeadSelector, LayerSelector, Site
from mmlens.interventions.state import StepState

MeanBaseline = Literal["image_tokens", "prompt_tokens", "other_heads"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit(ABC):
    """Base of interventions that write new values at a site.

    Attributes:
        at: site, e.g. ``"z"``, ``"resid_post"``, ``"vision.z"``, ``"projector.out"``, or a full hook name.
        layers: a layer, several, or None for all (negative numbers count from the end).
        heads: a head or several of every chosen layer, ``(layer, head)`` pairs, a ``Bool[layer, head]``
            tensor, or None for all. At ``k`` and ``v`` these are key-value heads.
        pos: position selector; for scores and pattern it selects queries. Scores that causality or padding has
            closed are never edited: scaling or zeroing them would let a head see the future.
    """

    at: str
    layers: LayerSelector = None
    heads: HeadSelector = None
    pos: Selector = "all"

    @abstractmethod
    def value(self, old: Tensor, site: Site, state: StepState, memory: dict[str, Tensor]) -> Tensor:
        """What the selected elements become; broadcastable to ``old``.

        Args:
            old: the activation of this step.
            site: the hook point it passes.
            state: which step this is.
            memory: what this intervention kept from earlier steps at this site.
        """

    def check(self, site: Site) -> None:  # noqa: B027 - most edits fit every site
        """Raises InterventionError if the edit makes no sense at this site."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Zero(Edit):
    """Writes zeros (zero ablation)."""

    def value(self, old: Tensor, site: Site, state: StepState, memory: dict[str, Tensor]) -> Tensor:
        """Zeros."""
        return torch.zeros_like(old)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale(Edit):
    """Multiplies by a factor (−1 flips the sign; Head Pursuit uses −1 to inhibit and 5 to enhance)."""

    factor: float

    def value(self, old: Tensor, site: Site, state: StepState, memory: dict[str, Tensor]) -> Tensor:
        """``factor * old``."""
        return old * self.factor


@dataclass(frozen=True, kw_only=True, eq=False)
class Mean(Edit):
    """Writes a mean (mean ablation).

    Attributes:
        baseline: over what the mean is taken: ``image_tokens`` of this sample, ``prompt_tokens`` of this sample
            (padding and generated tokens left out), or the ``other_heads`` of the layer at the same position.
    """

    baseline: MeanBaseline = "image_tokens"

    def check(self, site: Site) -> None:
        """Refuses sites where the mean is not defined."""
        if self.baseline not in ("image_tokens", "prompt_tokens", "other_heads"):
            raise InterventionError(
                f"unknown mean baseline {self.baseline!r}; known: image_tokens, prompt_tokens, other_heads."
            )
        if self.baseline == "other_heads" and site.layout not in ("head", "kv_head"):
            raise InterventionError(
                f"other_heads needs a head axis; {site.hook_name} has none (use q, k, v, z or result)."
            )
        if self.baseline != "other_heads" and (
            site.in_vision or site.layout not in ("residual", "head", "kv_head")
        ):
            raise InterventionError(f"a mean over token positions is not defined at {site.hook_name}.")

    def value(self, old: Tensor, site: Site, state: StepState, memory: dict[str, Tensor]) -> Tensor:
        """The mean over positions (kept from the prompt's step for later ones), or over the other heads."""
        if self.baseline == "other_heads":
            return (old.sum(dim=2, keepdim=True) - old) / (old.shape[2] - 1)
        if state.start == 0:
            memory["mean"] = self._mean_over_positions(old, state)
        return memory["mean"]

    def _mean_over_positions(self, old: Tensor, state: StepState) -> Tensor:
        name = "image" if self.baseline == "image_tokens" else "prompt"
        chosen = state.query_mask(name).to(old.dtype)
        weights = chosen / chosen.sum(dim=1, keepdim=True)
        return torch.einsum("bp,bp...->b...", weights, old)[:, None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Patch(Edit):
    """Writes values from another run (activation patching, resample ablation).

    Attributes:
        source: a cache (hook name → tensor) of whole, unsliced activations, or one tensor for a single site.
            Shapes must equal the activation's over the prompt; generated positions are left alone.
    """

    source: Mapping[str, Tensor] | ActivationCache | Float[Tensor, "..."]

    def tensor_for(self, site: Site) -> Tensor:
        """The source activation of one site; InterventionError if the cache lacks it."""
        if isinstance(self.source, Tensor):
            return self.source
        try:
            return self.source[site.hook_name]
        except KeyError:
            raise InterventionError(
                f"the source has no {site.hook_name!r}; record it first: model.run_with_cache(inputs, names_filter=…)."
            ) from None

    def check(self, site: Site) -> None:
        """The source must hold this site, with finite values."""
        if not bool(torch.isfinite(self.tensor_for(site)).all()):
            raise InterventionError(f"the patch for {site.hook_name} holds NaN or infinity.")

    def value(self, old: Tensor, site: Site, state: StepState, memory: dict[str, Tensor]) -> Tensor:
        """The source's values at this step's columns, the old ones where the source has none."""
        source = self.tensor_for(site).to(device=old.device, dtype=old.dtype)
        if site.layout == "attention" or site.in_vision or site.layout in ("image_features", "projector"):
            return _exact(source, old, site)
        n_prompt = state.prompt.n_pos
        if (
            source.shape[1] != n_prompt
            or source.shape[0] != old.shape[0]
            or source.shape[2:] != old.shape[2:]
        ):
            raise ShapeError(_mismatch(site, tuple(source.shape), (old.shape[0], n_prompt, *old.shape[2:])))
        mine = source[:, state.start : state.start + old.shape[1]]
        return torch.cat((mine, old[:, mine.shape[1] :]), dim=1)


def _exact(source: Tensor, old: Tensor, site: Site) -> Tensor:
    if source.shape != old.shape:
        raise ShapeError(_mismatch(site, tuple(source.shape), tuple(old.shape)))
    return source


def _mismatch(site: Site, given: tuple[int, ...], expected: tuple[int, ...]) -> str:
    return (
        f"the patch for {site.hook_name} has shape {given}, the activation {expected}. Clean and corrupt "
        "prompts must have the same batch and the same number of tokens; record whole activations (no pos=, heads=)."
    )
