"""Multi-head attention with every quantity of a head on a hook point.

One class serves the decoders (rotary, causal, grouped key-value heads, cached) and the vision towers (none of these, or
another rotary embedding). Weights stay fused, as the checkpoint stores them; ``W_Q`` and its kin are views into that
storage. The fused kernel (SDPA) runs unless something is attached to ``hook_attn_scores`` or ``hook_pattern``: then
scores and pattern are computed explicitly, with softmax statistics in float32.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from mmlens.model.joined import joined_products
from mmlens.model.linear import Linear
from mmlens.model.masks import AttentionMask
from mmlens.model.rotary import Rope, apply_rotary


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
        rotary: whether there are ``hook_rot_q`` and ``hook_rot_k``: queries and keys as the scores read them, rotated
            in a layer that has positions.
        interleaved: whether neighbouring coordinates are rotated as a pair; else the two halves are.
        scale: factor of the scores; None for ``d_head ** -0.5``.
        softcap: scores become ``cap * tanh(scores / cap)``; None for no cap.
        q_norm: norm of the queries before rotation, per head; None for none.
        k_norm: norm of the keys.
        flat_qk_norm: whether these norms act on all heads together.
        wide_softmax: whether the softmax is computed in at least float32.
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
        interleaved: bool = False,
        scale: float | None = None,
        softcap: float | None = None,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        flat_qk_norm: bool = False,
        wide_softmax: bool = True,
    ) -> None:
        super().__init__()
        self.d_model, self.n_heads, self.n_kv_heads, self.d_head = d_model, n_heads, n_kv_heads, d_head
        self.group = n_heads // n_kv_heads
        self.scale = d_head**-0.5 if scale is None else scale
        self.softcap, self.wide_softmax = softcap, wide_softmax
        self.rotary, self.interleaved = rotary, interleaved
        self.fused = True  # False computes scores and pattern explicitly even when nobody watches
        self.q_proj = Linear(d_model, n_heads * d_head, bias=qkv_bias)
        self.k_proj = Linear(d_model, n_kv_heads * d_head, bias=qkv_bias)
        self.v_proj = Linear(d_model, n_kv_heads * d_head, bias=qkv_bias)
        self.o_proj = Linear(n_heads * d_head, d_model, bias=out_bias)
        self.q_norm, self.k_norm, self.flat_qk_norm = q_norm, k_norm, flat_qk_norm
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
        q, k, v = joined_products(x, (self.q_proj, self.k_proj, self.v_proj))
        q = q.view(batch, pos, self.n_heads, self.d_head)
        k = k.view(batch, pos, self.n_kv_heads, self.d_head)
        return q, k, v.view(batch, pos, self.n_kv_heads, self.d_head)

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        *,
        mask: AttentionMask | None = None,
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
        q, k = self.positioned(self.hook_q(q), self.hook_k(k), rope)
        v = self.hook_v(v)
        if self.rotary:
            q, k = self.hook_rot_q(q), self.hook_rot_k(k)
        if cache is not None:
            k, v = cache.append(k, v)
        z = self.hook_z(self._attend(q, k, v, mask))
        return self._output(z)

    def last_position(
        self,
        x: Float[Tensor, "batch pos d_model"],
        *,
        mask: AttentionMask,
        rope: Rope | None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch 1 d_model"]:
        """What the heads write at the last position; no hook point fires.

        Args:
            x: normalised residual stream, all positions of this step.
            mask: which keys the last position may read.
            rope: cosines and sines of these positions.
            cache: keys and values of earlier positions.
        """
        q, k, v = self.project_last(x, rope)
        if cache is not None:
            k, v = cache.append(k, v)
        return self.o_proj(self._attend(q, k, v, mask).flatten(2))

    def project_last(
        self, x: Float[Tensor, "batch pos d_model"], rope: Rope | None
    ) -> tuple[
        Float[Tensor, "batch 1 head d_head"],
        Float[Tensor, "batch pos kv_head d_head"],
        Float[Tensor, "batch pos kv_head d_head"],
    ]:
        """The last position's queries, and the keys and values of all positions of ``x``, as the scores read them."""
        k, v = joined_products(x, (self.k_proj, self.v_proj))
        k, v = (part.unflatten(-1, (self.n_kv_heads, self.d_head)) for part in (k, v))
        q = self.q_proj(x[:, -1:]).unflatten(-1, (self.n_heads, self.d_head))
        last = None if rope is None else (rope[0][:, -1:], rope[1][:, -1:])
        return self._rotated(q, self.q_norm, last), self._rotated(k, self.k_norm, rope), v

    def positioned(
        self,
        q: Float[Tensor, "batch pos head d_head"],
        k: Float[Tensor, "batch pos kv_head d_head"],
        rope: Rope | None,
    ) -> tuple[Float[Tensor, "batch pos head d_head"], Float[Tensor, "batch pos kv_head d_head"]]:
        """Queries and keys as the scores read them: normalised, where the layer does that, and rotated."""
        return self._rotated(q, self.q_norm, rope), self._rotated(k, self.k_norm, rope)

    def _rotated(self, x: Tensor, norm: nn.Module | None, rope: Rope | None) -> Tensor:
        x = x if norm is None else self._normed(x, norm)
        return x if rope is None else apply_rotary(x, rope, interleaved=self.interleaved)

    def _normed(self, x: Tensor, norm: nn.Module) -> Tensor:
        return norm(x.flatten(2)).view(x.shape) if self.flat_qk_norm else norm(x)

    def _may_fuse(self) -> bool:
        watched = self.hook_attn_scores.has_hooks() or self.hook_pattern.has_hooks()
        return self.fused and self.softcap is None and not watched

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask | None) -> Tensor:
        return self._fused(q, k, v, mask) if self._may_fuse() else self._explicit(q, k, v, mask)

    def _explicit(self, q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask | None) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [batch, head, pos, d_head]
        if self.group > 1:
            k, v = (x.repeat_interleave(self.group, dim=1) for x in (k, v))
        scores = torch.matmul(q, k.transpose(2, 3)) * self.scale
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        if mask is not None and not mask.is_open:
            scores = scores + mask.bias(scores.device, scores.dtype)
        scores = self.hook_attn_scores(scores)
        wide = torch.promote_types(scores.dtype, torch.float32) if self.wide_softmax else scores.dtype
        pattern = self.hook_pattern(F.softmax(scores, dim=-1, dtype=wide).to(q.dtype))
        return torch.matmul(pattern, v).transpose(1, 2)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask | None) -> Tensor:
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
            self.W_O.to(z),
            "batch pos head d_head, head d_head d_model -> batch pos head d_model",
        )
        out = self.hook_result(result).sum(dim=2)
        return out if self.o_proj.bias is None else out + self.o_proj.bias.to(out)
