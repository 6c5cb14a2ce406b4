"""Where a forward pass stands: which columns of the sequence it computes now, and what every token is.

A prompt is one step. Cached generation is one step per token; hooks then see one query but all keys. Positions
are always columns of the whole, left-padded sequence, so an intervention means the same in every step.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from mmlens.inputs import Inputs
from mmlens.inputs.selectors import Selector

GENERATED = ("answer", "generated")
"""Selectors that may be empty while only the prompt has been read."""


@dataclass(kw_only=True)
class StepState:
    """The step that hooks are in; the running model moves it on.

    Attributes:
        prompt: what the run started from.
        inputs: prompt and everything generated so far.
        start: first column computed in this step (0 unless keys and values are cached).
    """

    prompt: Inputs
    inputs: Inputs = field(init=False)
    start: int = 0

    def __post_init__(self) -> None:
        """Starts at the prompt."""
        self.inputs = self.prompt

    def advance(self, inputs: Inputs, start: int) -> None:
        """Moves on to a longer sequence, of which the columns from ``start`` are computed now."""
        self.inputs, self.start = inputs, start

    def mask(self, selector: Selector) -> Bool[Tensor, "batch pos"]:
        """Columns that a selector means, over the whole sequence so far.

        Names follow every token, generated ones included. Lists, slices and masks speak of the prompt.
        """
        n_new = self.inputs.n_pos - self.prompt.n_pos
        if isinstance(selector, str) and (n_new or selector not in GENERATED):
            return self.inputs.mask(selector)
        if isinstance(selector, str):
            return torch.zeros_like(self.prompt.input_ids, dtype=torch.bool)
        chosen = self.prompt.mask(selector)
        return torch.nn.functional.pad(chosen, (0, n_new), value=False)

    def query_mask(self, selector: Selector) -> Bool[Tensor, "batch query"]:
        """The selector's columns among those computed in this step."""
        return self.mask(selector)[:, self.start :]

    def padding(self) -> Bool[Tensor, "batch pos"]:
        """Padding columns, over the whole sequence so far."""
        return ~self.inputs.attention_mask.bool()
