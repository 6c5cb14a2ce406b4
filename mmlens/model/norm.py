"""RMSNorm and LayerNorm with hook points on the scale and on the normalised activation.

``hook_scale`` is the divisor (root mean square, or standard deviation), so freezing it linearises the norm;
``hook_normalized`` is the activation after the division and before the learned weight, as in TransformerLens.
Unwatched, both compute exactly as Hugging Face does (reciprocal square root; fused LayerNorm); a watched scale
is divided by instead, which may round the last bit differently.
"""

import torch
import torch.nn.functional as F
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
        mean_square = wide.pow(2).mean(-1, keepdim=True) + self.eps
        if self.hook_scale.has_hooks():
            wide = wide / self.hook_scale(mean_square.sqrt())
        else:
            wide = wide * torch.rsqrt(mean_square)
        normalized = self.hook_normalized(wide.to(x.dtype))
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
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        if not (self.hook_scale.has_hooks() or self.hook_normalized.has_hooks()):
            return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = wide - wide.mean(-1, keepdim=True)
        scale = self.hook_scale((centred.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        normalized = self.hook_normalized((centred / scale).to(x.dtype))
        return normalized * weight + bias
