"""Weights under TransformerLens's names, stacked over layers, and what ActivationCache asks of a model."""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmlens.errors import AnswerError

if TYPE_CHECKING:
    from mmlens.config import ModelConfig


class WeightViews:
    """Mixed into the model; the per-layer views share storage, the stacks are copies."""

    cfg: "ModelConfig"
    blocks: Any
    embed: Any
    unembed: Any
    tokenizer: Any

    def _stack(self, name: str) -> Tensor:
        return torch.stack([getattr(block.attn, name) for block in self.blocks])

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Query weights of all layers (a copy; ``blocks[l].attn.W_Q`` is a view)."""
        return self._stack("W_Q")

    @property
    def W_K(self) -> Float[Tensor, "layer kv_head d_model d_head"]:
        """Key weights of all layers (a copy)."""
        return self._stack("W_K")

    @property
    def W_V(self) -> Float[Tensor, "layer kv_head d_model d_head"]:
        """Value weights of all layers (a copy)."""
        return self._stack("W_V")

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """Output weights of all layers (a copy)."""
        return self._stack("W_O")

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Token embeddings."""
        return self.embed.weight

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding: a view."""
        return self.unembed.weight.T

    def tokens_to_residual_directions(self, tokens: str | int | Tensor) -> Float[Tensor, "*tokens d_model"]:
        """Unembedding directions of tokens, as TransformerLens's direct logit attribution wants them."""
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        return self.W_U.T[torch.as_tensor(tokens, device=self.unembed.weight.device)]

    def to_single_token(self, string: str) -> int:
        """Id of a string that is exactly one token; AnswerError otherwise."""
        ids = self.tokenizer(string, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            pieces = self.tokenizer.convert_ids_to_tokens(ids)
            raise AnswerError(f"{string!r} is {len(ids)} tokens: {pieces}; give a single token.")
        return int(ids[0])

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Tensor:
        """Sum of the output biases below a layer: what a residual stream holds that no head or neuron wrote."""
        total = torch.zeros(
            self.cfg.d_model, dtype=self.unembed.weight.dtype, device=self.unembed.weight.device
        )
        for index, block in enumerate(self.blocks):
            if index < layer or (index == layer and mlp_input):
                total = _add(total, block.attn.o_proj.bias)
            if index < layer and include_mlp_biases:
                total = _add(total, block.mlp.down_proj.bias)
        return total


def _add(total: Tensor, bias: Tensor | None) -> Tensor:
    return total if bias is None else total + bias
