"""Attention of text over a shared prefix, mixed by gates between the image and its baseline; differentiable.

1. Scores of every query against its own segment (system tokens, the suffix up to the query) and against the image.
2. Softmax over both and the values they weigh: z(image).
3. Softmax over the own segment and one replacement, which counts for as many image tokens as the query sees (or over
   the own segment alone): z(baseline).
4. ``z = g · z(image) + (1 − g) · z(baseline)``, in at least float32.

Everything is written with operations that autograd differentiates; the fused kernels of ``kernels`` give no gradient
through their log-sum-exp. Where the scores of a layer are many, they are not kept for the way back but computed again
there (gradient checkpointing, Chen et al. 2016, arXiv 1604.06174): memory then holds those of one layer.
"""

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmlens.engine.shared_prefix import LayerPrefix, Replacement

_KEPT_SCORES = 2**22
"""Scores of one layer (16 MB in float32) from which on they are computed twice."""


def gated_attention(
    q: Float[Tensor, "row query head d_head"],
    k: Float[Tensor, "row suffix kv_head d_head"],
    v: Float[Tensor, "row suffix kv_head d_head"],
    gates: Float[Tensor, "point head"],
    *,
    prefix: LayerPrefix,
    replacement: Replacement | None,
    scale: float,
    softcap: float | None = None,
) -> Float[Tensor, "point query head d_head"]:
    """Head outputs z at every point.

    Args:
        q: rotated queries of the last positions of the suffix; one row per point, or one row that all points share.
        k: rotated keys of the whole suffix, rows as in ``q``.
        v: values of the whole suffix.
        gates: 1 = the head reads the image, 0 = the replacement.
        prefix: the shared keys and values.
        replacement: what closed heads read in place of every image token; None for nothing (knockout).
        scale: factor on the scores.
        softcap: scores become ``cap * tanh(scores / cap)``; None for no cap.

    Returns:
        One output per point, before the output projection, in the dtype of ``q``.
    """
    options = prefix, replacement, scale, softcap
    n_scores = q.shape[:3].numel() * (prefix.k_system.shape[1] + prefix.k_image.shape[1] + k.shape[1])
    if n_scores > _KEPT_SCORES and torch.is_grad_enabled() and q.requires_grad:
        kept, closed = checkpoint(_ends, q, k, v, *options, use_reentrant=False, preserve_rng_state=False)
    else:
        kept, closed = _ends(q, k, v, *options)
    gate = gates[:, None, :, None]
    wide = torch.promote_types(gate.dtype, kept.dtype)
    return (gate * kept.to(wide) + (1 - gate) * closed.to(wide)).to(q.dtype)  # 4


def _ends(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix: LayerPrefix,
    replacement: Replacement | None,
    scale: float,
    softcap: float | None,
) -> tuple[Float[Tensor, "row query head d_head"], Float[Tensor, "row query head d_head"]]:
    """z(image) and z(baseline)."""
    grouped = rearrange(q, "row query (kv group) d -> row query kv group d", kv=k.shape[2])
    k, v = (
        torch.cat([rearrange(shared, "kv key d -> 1 key kv d").expand(len(own), -1, -1, -1), own], dim=1)
        for shared, own in ((prefix.k_system, k), (prefix.v_system, v))
    )
    seen_own, seen_image = _seen(prefix, q.shape[1], k.shape[1])
    own = einsum(grouped, k, "row query kv group d, row key kv d -> kv row query group key")
    own = _closed(_capped(own, scale, softcap), seen_own)  # 1
    image = einsum(grouped, prefix.k_image, "row query kv group d, kv key d -> kv row query group key")
    image = _closed(_capped(image, scale, softcap), seen_image)
    kept = _weighed(own, image, v, prefix.v_image)  # 2
    if replacement is None:
        return kept, _weighed(own, image[..., :0], v, prefix.v_image[:, :0])
    bar = einsum(grouped, replacement.k.to(q), "row query kv group d, kv d -> kv row query group")
    n_seen = seen_image.sum(dim=1)[:, None]  # [query, 1]
    bar = _capped(bar, scale, softcap)
    bar = bar + n_seen.to(bar.dtype).log()  # -inf where a query sees no image token
    return kept, _weighed(own, bar[..., None], v, replacement.v.to(v)[:, None])  # 3


def _seen(
    prefix: LayerPrefix, n_query: int, n_own: int
) -> tuple[Bool[Tensor, "query own"], Bool[Tensor, "query image"]]:
    """Which keys of its own segment, and which image tokens, each query may read; it always reads itself."""
    if prefix.sight is not None:
        own = torch.cat([prefix.sight.system, prefix.sight.suffix], dim=1)
        return own[-n_query:], prefix.sight.image[-n_query:]
    opened = {"dtype": torch.bool, "device": prefix.k_image.device}
    own = torch.ones(n_query, n_own, **opened).tril(n_own - n_query)
    return own, torch.ones(n_query, prefix.k_image.shape[1], **opened)


def _capped(scores: Tensor, scale: float, softcap: float | None) -> Tensor:
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def _closed(
    scores: Float[Tensor, "kv_head row query group key"], seen: Bool[Tensor, "query key"]
) -> Float[Tensor, "kv_head row query group key"]:
    return scores.masked_fill(~seen[:, None, :], -torch.inf)


def _weighed(
    own: Float[Tensor, "kv_head row query group key"],
    shared: Float[Tensor, "kv_head row query group shared"],
    v_own: Float[Tensor, "row key kv_head d_head"],
    v_shared: Float[Tensor, "kv_head shared d_head"],
) -> Float[Tensor, "row query head d_head"]:
    """Values of both segments under one softmax."""
    weights = torch.cat([own, shared], dim=-1).softmax(dim=-1).to(v_own.dtype)
    of_own, of_shared = weights.split([own.shape[-1], shared.shape[-1]], dim=-1)
    z = einsum(of_own, v_own, "kv row query group key, row key kv d -> row query kv group d")
    z = z + einsum(of_shared, v_shared, "kv row query group key, kv key d -> row query kv group d")
    return z.flatten(2, 3)
