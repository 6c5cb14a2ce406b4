"""What the suffix reads from the image: one copy of keys and values for all masks.

All masks and queries are folded into one query axis. Where heads are closed under some of the masks, their queries are
left out first (``read_by_open_heads``): at random masks that spares a CPU two fifths of this segment. A GPU would wait
for their number to be known, for a share of a layer that is small there, so it reads for all (``read_by_all_heads``).
"""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlens.engine.kernels import attend

Read = tuple[Float[Tensor, "row query head d_head"], Float[Tensor, "row query head"]]
"""Output and log-sum-exp of the scores."""
ReadImage = Callable[..., Read]


def read_by_all_heads(
    q: Float[Tensor, "row query head d_head"],
    keep: Bool[Tensor, "mask head"],
    k: Float[Tensor, "kv_head image d_head"],
    v: Float[Tensor, "kv_head image d_head"],
    scale: float,
    softcap: float | None = None,
) -> Read:
    """The image segment of every head under every mask.

    Args:
        q: rotated queries; one row per mask, or one row that all masks share.
        keep: which heads read the image.
        k: keys of the image tokens.
        v: their values.
        scale: factor on the scores.
        softcap: scores become ``cap * tanh(scores / cap)``; None for no cap.
    """
    rows, n_query, n_kv = q.shape[0], q.shape[1], k.shape[0]
    folded = rearrange(q, "row pos (kv group) d -> 1 kv (row pos group) d", kv=n_kv)
    out, lse = attend(folded, k[None], v[None], scale, None, softcap)
    sizes = {"row": rows, "pos": n_query}
    return (
        rearrange(out, "1 kv (row pos group) d -> row pos (kv group) d", **sizes),
        rearrange(lse, "1 kv (row pos group) -> row pos (kv group)", **sizes),
    )


def read_by_open_heads(
    q: Float[Tensor, "row query head d_head"],
    keep: Bool[Tensor, "mask head"],
    k: Float[Tensor, "kv_head image d_head"],
    v: Float[Tensor, "kv_head image d_head"],
    scale: float,
    softcap: float | None = None,
) -> Read:
    """The same where a head is open; elsewhere anything finite, with a log-sum-exp that must not be used."""
    readers = readers_of(keep, k.shape[0])
    if len(q) != len(keep) or readers.numel() == keep.numel():
        return read_by_all_heads(q, keep, k, v, scale, softcap)
    places = _places(readers, q)
    reading = q.reshape(-1, q.shape[3]).index_select(0, places).view(1, -1, k.shape[0], q.shape[3])
    found, found_lse = attend(reading.transpose(1, 2), k[None], v[None], scale, None, softcap)
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lse = torch.zeros(q.shape[:3], dtype=found_lse.dtype, device=q.device)
    out.view(-1, q.shape[3]).index_copy_(0, places, found.transpose(1, 2).reshape(-1, q.shape[3]))
    lse.view(-1).index_copy_(0, places, found_lse.transpose(1, 2).flatten())
    return out, lse


def readers_of(keep: Bool[Tensor, "mask head"], n_kv_heads: int) -> Int[Tensor, "reader kv_head"]:
    """The open heads of all masks, by key-value head.

    The query heads that share a key-value head are numbered ``mask * group + head in the group``. So that all key-value
    heads have equally many, closed ones fill up.

    Args:
        keep: which heads read the image.
        n_kv_heads: key-value heads of the layer.
    """
    pairs = rearrange(keep, "mask (kv group) -> (mask group) kv", kv=n_kv_heads)
    n_readers = max(1, int(pairs.sum(dim=0).max()))
    return pairs.int().argsort(dim=0, descending=True, stable=True)[:n_readers]


def _places(
    readers: Int[Tensor, "reader kv_head"], q: Float[Tensor, "row query head d_head"]
) -> Int[Tensor, " reader_query_kv"]:
    """Where the readers' queries lie once rows, positions and heads of ``q`` are one axis."""
    n_query, n_heads, n_kv = q.shape[1], q.shape[2], readers.shape[1]
    group = n_heads // n_kv
    first = torch.arange(n_kv, device=q.device) * group
    start = (readers // group) * n_query * n_heads + first + readers % group  # at position 0
    later = torch.arange(n_query, device=q.device)[:, None] * n_heads
    return (start[:, None] + later).flatten()
