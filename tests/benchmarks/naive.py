"""What scripts do: the unmodified Hugging Face model, one whole forward per head mask."""

from collections.abc import Callable
from typing import Any

import torch

from tests.benchmarks.shape import Bench

CLOSED = torch.finfo(torch.float32).min


class Naive:
    """Eager attention, all logits; a forward pre-hook on every ``self_attn`` installs a per-head 4-D additive mask.

    Each mask is edited from the causal one by slices, which costs less than building it by comparisons.
    """

    def __init__(self, bench: Bench) -> None:
        self.hf, self.embeds, self.answer = bench.hf, bench.embeds, bench.answer
        self.attention_mask = bench.inputs.attention_mask
        self.masks = HeadEdges(bench)

    def __call__(self, masks: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.one(mask) for mask in masks])

    @torch.no_grad()
    def one(self, mask: torch.Tensor) -> torch.Tensor:
        layers = self.hf.model.language_model.layers
        handles = [
            layer.self_attn.register_forward_pre_hook(self.installer(keep), with_kwargs=True, prepend=True)
            for layer, keep in zip(layers, mask, strict=True)
        ]
        try:
            logits = self.hf(inputs_embeds=self.embeds, attention_mask=self.attention_mask).logits
        finally:
            for handle in handles:
                handle.remove()
        return logits[0, -1, self.answer].double()

    def installer(self, keep: torch.Tensor) -> Callable[..., Any]:
        def install(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, kwargs | {"attention_mask": self.masks.of(keep)}

        return install


class HeadEdges:
    """Additive attention masks of one layer, causal and with image → text edges closed for the ablated heads."""

    def __init__(self, bench: Bench) -> None:
        n, image = bench.shape.n_pos, bench.inputs.image_mask[0].nonzero()[:, 0]
        self.image = slice(int(image[0]), int(image[-1]) + 1)
        self.text = slice(int(image[-1]) + 1, n)
        causal = torch.full((n, n), CLOSED).triu(1)
        self.causal = causal.expand(1, bench.shape.n_heads, n, n)

    def of(self, keep: torch.Tensor) -> torch.Tensor:
        """[1, head, query, key]; ``keep`` says which heads read the image."""
        mask = self.causal.clone()
        mask[:, ~keep, self.text, self.image] = CLOSED
        return mask
