"""Attention of many head masks at once over one shared prefix.

For every mask and every suffix query, a head attends to two segments: its own (system tokens before and
between the images, and the suffix up to the query) and the image. The image segment's keys and values are the
same for all masks, so all masks and queries are folded into one query axis and read it in a single kernel
call. Then:

1. own segment: output and log-sum-exp of its scores, per mask;
2. image segment: output and log-sum-exp, one call for all masks (``image_segment``);
3. gate: where a head is ablated, the image segment's output and log-sum-exp are replaced by what its baseline
   reads: -inf (knockout), or log(n_image) + q.k scale and v for one replacement key and value (k, v);
4. merge: out = own + sigmoid(lse_image - lse_own) (image - own), in at least float32.

A sliding window closes the same edges under every mask: then the queries are folded per mask only, each mask reading
the one copy of the image's keys through one additive mask of the suffix against them, and n_image in step 3 is the
number of image tokens that the query sees.

No tensor here has both a mask axis and a prefix-key axis, apart from the few system tokens.

Source: Hydragen (Juravsky et al. 2024, arXiv 2402.05099) for the shared prefix and its merge; the gate is
ours.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from mmlens.engine.image_segment import ReadImage, read_by_all_heads
from mmlens.engine.kernels import attend
from mmlens.engine.sight import Sight


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerPrefix:
    """Keys (after rotary) and values of one layer's prefix, shared by all masks.

    Attributes:
        k_system: keys of every token before the suffix that is no image token.
        v_system: their values.
        k_image: keys of the image tokens.
        v_image: their values.
        sight: what each position of the suffix sees through the layer's window; None if that hides nothing.
    """

    k_system: Float[Tensor, "kv_head system d_head"]
    v_system: Float[Tensor, "kv_head system d_head"]
    k_image: Float[Tensor, "kv_head image d_head"]
    v_image: Float[Tensor, "kv_head image d_head"]
    sight: Sight | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Replacement:
    """One key and value per key-value head, read by ablated heads at every image position of one layer."""

    k: Float[Tensor, "kv_head d_head"]
    v: Float[Tensor, "kv_head d_head"]


def shared_prefix_attention(
    q: Float[Tensor, "row query head d_head"],
    k: Float[Tensor, "row suffix kv_head d_head"],
    v: Float[Tensor, "row suffix kv_head d_head"],
    *,
    prefix: LayerPrefix,
    keep: Bool[Tensor, "mask head"],
    replacement: Replacement | None,
    scale: float,
    softcap: float | None = None,
    read_image: ReadImage = read_by_all_heads,
) -> Float[Tensor, "mask query head d_head"]:
    """Head outputs z of every mask.

    Args:
        q: rotated queries of the last positions of the suffix; one row per mask, or one row that all masks
            share.
        k: rotated keys of the whole suffix, rows as in ``q``.
        v: values of the whole suffix.
        prefix: the shared keys and values.
        keep: which heads read the image; the others read the replacement.
        replacement: what ablated heads read in place of every image token; None for nothing (knockout).
        scale: factor on the scores.
        softcap: scores become ``cap * tanh(scores / cap)``; None for no cap.
        read_image: how the image segment is computed where no window hides any of it.

    Returns:
        One output per mask, before the output projection, in the dtype of ``q``.
    """
    own, lse_own = _own_segment(q, k, v, prefix, scale, softcap)
    if prefix.sight is not None and not prefix.sight.whole_image:
        image, lse_image = _windowed_image_segment(q, prefix, prefix.sight, scale, softcap)
    else:
        image, lse_image = read_image(q, keep, prefix.k_image, prefix.v_image, scale, softcap)
    gate = keep[:, None, :]  # [mask, 1, head]
    if replacement is None:
        lse_image = torch.where(gate, lse_image, -torch.inf)
    else:
        lse_image = torch.where(gate, lse_image, _replaced_lse(q, replacement, prefix, scale, softcap))
        group = q.shape[2] // replacement.v.shape[0]
        image = torch.where(
            gate[..., None], image, replacement.v.repeat_interleave(group, dim=0).to(image.dtype)
        )
    weight = torch.sigmoid(lse_image - lse_own)[..., None]  # [mask, query, head, 1]
    return torch.lerp(*torch.broadcast_tensors(own.to(weight.dtype), image.to(weight.dtype), weight)).to(
        q.dtype
    )


def _own_segment(
    q: Tensor, k: Tensor, v: Tensor, prefix: LayerPrefix, scale: float, softcap: float | None
) -> tuple[Float[Tensor, "row query head d_head"], Float[Tensor, "row query head"]]:
    rows, n_query, n_suffix, n_kv = q.shape[0], q.shape[1], k.shape[1], k.shape[2]
    group = q.shape[2] // n_kv
    k, v = (
        torch.cat([shared.expand(rows, -1, -1, -1), rearrange(own, "row pos kv d -> row kv pos d")], dim=2)
        for shared, own in ((prefix.k_system, k), (prefix.v_system, v))
    )
    q = rearrange(q, "row pos (kv group) d -> row kv (pos group) d", kv=n_kv)
    if prefix.sight is not None:
        bias = prefix.sight.own_bias(n_query, group, q)
    else:
        bias = _causal_bias(n_query, n_suffix, prefix.k_system.shape[1], group, q) if n_query > 1 else None
    out, lse = attend(q, k, v, scale, bias, softcap)
    return (
        rearrange(out, "row kv (pos group) d -> row pos (kv group) d", group=group),
        rearrange(lse, "row kv (pos group) -> row pos (kv group)", group=group),
    )


def _windowed_image_segment(
    q: Tensor, prefix: LayerPrefix, sight: Sight, scale: float, softcap: float | None
) -> tuple[Float[Tensor, "row query head d_head"], Float[Tensor, "row query head"]]:
    rows, n_query, n_kv = q.shape[0], q.shape[1], prefix.k_image.shape[0]
    group = q.shape[2] // n_kv
    k, v = (x.expand(rows, -1, -1, -1) for x in (prefix.k_image, prefix.v_image))  # no copies
    q = rearrange(q, "row pos (kv group) d -> row kv (pos group) d", kv=n_kv)
    out, lse = attend(q, k, v, scale, sight.image_bias(n_query, group, q), softcap)
    return (
        rearrange(out, "row kv (pos group) d -> row pos (kv group) d", group=group),
        rearrange(lse, "row kv (pos group) -> row pos (kv group)", group=group),
    )


def _replaced_lse(
    q: Float[Tensor, "row query head d_head"],
    replacement: Replacement,
    prefix: LayerPrefix,
    scale: float,
    softcap: float | None,
) -> Float[Tensor, "row query head"]:
    n_kv = replacement.k.shape[0]
    grouped = rearrange(q, "row pos (kv group) d -> row pos kv group d", kv=n_kv)
    score = (grouped * replacement.k.to(q.dtype)[:, None]).sum(-1) * scale  # [row, pos, kv, group]
    score = score if softcap is None else torch.tanh(score / softcap) * softcap
    score = rearrange(score, "row pos kv group -> row pos (kv group)")
    score = score.to(torch.promote_types(score.dtype, torch.float32))
    if prefix.sight is None:
        return score + math.log(prefix.k_image.shape[1])
    return score + prefix.sight.n_seen(q.shape[1]).to(score.dtype).log()  # -inf where a query sees none


def _causal_bias(
    n_query: int, n_suffix: int, n_system: int, group: int, like: Tensor
) -> Float[Tensor, "query_group key"]:
    position = torch.arange(n_suffix - n_query, n_suffix, device=like.device).repeat_interleave(group)
    later = torch.arange(n_suffix, device=like.device)[None, :] > position[:, None]
    bias = torch.zeros(n_query * group, n_system + n_suffix, dtype=like.dtype, device=like.device)
    bias[:, n_system:].masked_fill_(later, -torch.inf)  # every query still reads itself, so no row is closed
    return bias
