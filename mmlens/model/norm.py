"""RMSNorm and LayerNorm with hook points on the scale and on the normalised activation.

``hook_scale`` is the divisor (root mean square, or standard deviation), so freezing it linearises the norm;
``hook_normalized`` is the activation after the division and before the learned weight, as in TransformerLens.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint


class RMSNorm(nn.Module):
    """``weight * x / sqrt(mean(x²) + eps)``, statistics in at least float32, as Llama computes it."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """Returns the normalised, weighted activation in the dtype of ``x``."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = self.hook_scale((wide.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        normalized = self.hook_normalized((wide * scale.reciprocal()).to(x.dtype))
        return self.weight.to(x.dtype) * normalized


class LayerNorm(nn.Module):
    """``weight * (x - mean) / sqrt(var + eps) + bias``, as CLIP computes it."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """Returns the normalised, weighted and shifted activation in the dtype of ``x``."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = wide - wide.mean(-1, keepdim=True)
        scale = self.hook_scale((centred.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        normalized = self.hook_normalized((centred / scale).to(x.dtype))
        return normalized * self.weight.to(x.dtype) + self.bias.to(x.dtype)
