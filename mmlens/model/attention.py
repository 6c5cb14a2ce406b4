"""Multi-head attention with every quantity of a head on a hook point.

One class serves the decoder (rotary, causal, grouped key-value heads, cached) and the vision tower (none of
these). Weights stay fused, as the checkpoint stores them; ``W_Q`` and its kin are views into that storage.
The fused kernel (SDPA) runs unless something is attached to ``hook_attn_scores`` or ``hook_pattern``: then
scores and pattern are computed explicitly, with softmax statistics in float32.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from mmlens.model.linear import Linear
from mmlens.model.masks import CausalMask
from mmlens.model.rotary import apply_rotary

Rope = tuple[Float[Tensor, "#batch pos d_head"], Float[Tensor, "#batch pos d_head"]]


@dataclass
class LayerCache:
    """Keys (after rotary) and values of one layer, grown by every step of a cached generation."""

    k: Float[Tensor, "batch key kv_head d_head"] | None = None
    v: Float[Tensor, "batch key kv_head d_head"] | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the step's keys and values; returns all of them so far."""
        self.k = k if self.k is None else torch.cat((self.k, k), dim=1)
        self.v = v if self.v is None else torch.cat((self.v, v), dim=1)
        return self.k, self.v


class Attention(nn.Module):
    """Attention of one layer.

    Args:
        d_model: width of the residual stream.
        n_heads: query heads.
        n_kv_heads: key-value heads; query head ``h`` reads key-value head ``h // group``.
        d_head: width of one head.
        qkv_bias: whether the query, key and value maps have biases.
        out_bias: whether the output map has one.
        rotary: whether queries and keys are rotated (adds ``hook_rot_q`` and ``hook_rot_k``).
    """

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        d_head: int,
        qkv_bias: bool,
        out_bias: bool,
        rotary: bool,
    ) -> None:
        super().__init__()
        self.d_model, self.n_heads, self.n_kv_heads, self.d_head = d_model, n_heads, n_kv_heads, d_head
        self.group = n_heads // n_kv_heads
        self.scale = d_head**-0.5
        self.rotary = rotary
        self.fused = True  # False computes scores and pattern explicitly even when nobody watches
        self.q_proj = Linear(d_model, n_heads * d_head, bias=qkv_bias)
        self.k_proj = Linear(d_model, n_kv_heads * d_head, bias=qkv_bias)
        self.v_proj = Linear(d_model, n_kv_heads * d_head, bias=qkv_bias)
        self.o_proj = Linear(n_heads * d_head, d_model, bias=out_bias)
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        if rotary:
            self.hook_rot_q, self.hook_rot_k = HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()
        self.hook_z, self.hook_result = HookPoint(), HookPoint()

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        """Query weights per head: a view of the fused storage."""
        return self.q_proj.weight.view(self.n_heads, self.d_head, self.d_model).transpose(1, 2)

    @property
    def W_K(self) -> Float[Tensor, "kv_head d_model d_head"]:
        """Key weights per key-value head: a view of the fused storage."""
        return self.k_proj.weight.view(self.n_kv_heads, self.d_head, self.d_model).transpose(1, 2)

    @property
    def W_V(self) -> Float[Tensor, "kv_head d_model d_head"]:
        """Value weights per key-value head: a view of the fused storage."""
        return self.v_proj.weight.view(self.n_kv_heads, self.d_head, self.d_model).transpose(1, 2)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """Output weights per head: a view of the fused storage."""
        return self.o_proj.weight.view(self.d_model, self.n_heads, self.d_head).permute(1, 2, 0)

    def project(
        self, x: Float[Tensor, "batch pos d_model"]
    ) -> tuple[
        Float[Tensor, "batch pos head d_head"],
        Float[Tensor, "batch pos kv_head d_head"],
        Float[Tensor, "batch pos kv_head d_head"],
    ]:
        """Queries, keys and values per head, before rotation and without hooks."""
        batch, pos, _ = x.shape
        q = self.q_proj(x).view(batch, pos, self.n_heads, self.d_head)
        k = self.k_proj(x).view(batch, pos, self.n_kv_heads, self.d_head)
        v = self.v_proj(x).view(batch, pos, self.n_kv_heads, self.d_head)
        return q, k, v

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        *,
        mask: CausalMask | None = None,
        rope: Rope | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the heads write into the residual stream, summed.

        Args:
            x: normalised residual stream of this step's positions.
            mask: which keys each query may read; None lets all read all.
            rope: cosines and sines of this step's positions; None leaves q and k unrotated.
            cache: keys and values of earlier steps, extended in place.
        """
        q, k, v = self.project(x)
        q, k, v = self.hook_q(q), self.hook_k(k), self.hook_v(v)
        if rope is not None:
            q = self.hook_rot_q(apply_rotary(q, *rope))
            k = self.hook_rot_k(apply_rotary(k, *rope))
        if cache is not None:
            k, v = cache.append(k, v)
        attend = self._fused if self.fused and not self._is_watched() else self._explicit
        z = self.hook_z(attend(q, k, v, mask))
        return self._output(z)

    def _is_watched(self) -> bool:
        return self.hook_attn_scores.has_hooks() or self.hook_pattern.has_hooks()

    def _explicit(self, q: Tensor, k: Tensor, v: Tensor, mask: CausalMask | None) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [batch, head, pos, d_head]
        if self.group > 1:
            k, v = (x.repeat_interleave(self.group, dim=1) for x in (k, v))
        scores = torch.matmul(q, k.transpose(2, 3)) * self.scale
        if mask is not None and not mask.is_open:
            scores = scores + mask.bias(scores.device, scores.dtype)
        scores = self.hook_attn_scores(scores)
        wide = torch.promote_types(scores.dtype, torch.float32)
        pattern = self.hook_pattern(F.softmax(scores, dim=-1, dtype=wide).to(q.dtype))
        return torch.matmul(pattern, v).transpose(1, 2)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, mask: CausalMask | None) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        causal = mask is not None and mask.is_plain_causal and mask.n_query > 1
        needs_bias = mask is not None and not causal and not mask.is_open
        bias = mask.bias(q.device, q.dtype) if mask is not None and needs_bias else None
        z = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, is_causal=causal, scale=self.scale, enable_gqa=self.group > 1
        )
        return z.transpose(1, 2)

    def _output(self, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos d_model"]:
        if not self.hook_result.has_hooks():
            return self.o_proj(z.reshape(*z.shape[:2], -1))
        result = einsum(
            z,
            self.W_O.to(z.dtype),
            "batch pos head d_head, head d_head d_model -> batch pos head d_model",
        )
        out = self.hook_result(result).sum(dim=2)
        return out if self.o_proj.bias is None else out + self.o_proj.bias.to(out.dtype)
