"""Attention that also returns the log-sum-exp of its scores, by the best kernel that the device has.

- CPU: PyTorch's fused kernel.
- CUDA in half precision: the flash kernel, where nothing has to be closed; its log-sum-exp is in float32.
- Elsewhere, and for capped scores: the explicit form, over chunks of queries.

The fused kernels give no gradient through their log-sum-exp; ``gated_attention`` is the form for gradients.

Source: online softmax and its log-sum-exp as in FlashAttention (Dao et al. 2022, arXiv 2205.14135).
"""

import torch
from jaxtyping import Float
from torch import Tensor

MAX_SCORES = 2**24
"""Scores held at once by the explicit form (64 MB in float32)."""
_FLASH_HEADS = 256
"""Largest width of a head that the flash kernel takes; it must be a multiple of 8."""


def attend(
    q: Float[Tensor, "row kv_head query d_head"],
    k: Float[Tensor, "row kv_head key d_head"],
    v: Float[Tensor, "row kv_head key d_head"],
    scale: float,
    bias: Float[Tensor, "query key"] | None = None,
    softcap: float | None = None,
) -> tuple[Float[Tensor, "row kv_head query d_head"], Float[Tensor, "row kv_head query"]]:
    """Attention output and log-sum-exp of the scores (natural logarithm, in at least float32)."""
    empty = k.shape[2] == 0 or q.shape[2] == 0  # the fused kernels divide by both lengths
    if softcap is None and not empty:
        if q.device.type == "cpu":
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, attn_mask=bias, scale=scale
            )
        if bias is None and flash_fits(q):
            return _flash(q, k, v, scale)
    return attend_explicitly(q, k, v, scale, bias, softcap)


def flash_fits(q: Float[Tensor, "row kv_head query d_head"]) -> bool:
    """Whether the flash kernel of CUDA takes such queries (compute capability 8.0 and newer)."""
    if q.device.type != "cuda" or q.dtype not in (torch.bfloat16, torch.float16):
        return False
    width = q.shape[-1]
    return width % 8 == 0 and width <= _FLASH_HEADS and torch.cuda.get_device_capability(q.device) >= (8, 0)


def _flash(
    q: Float[Tensor, "row kv_head query d_head"],
    k: Float[Tensor, "row kv_head key d_head"],
    v: Float[Tensor, "row kv_head key d_head"],
    scale: float,
) -> tuple[Float[Tensor, "row kv_head query d_head"], Float[Tensor, "row kv_head query"]]:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)
    return out, lse


def attend_explicitly(
    q: Float[Tensor, "row kv_head query d_head"],
    k: Float[Tensor, "row kv_head key d_head"],
    v: Float[Tensor, "row kv_head key d_head"],
    scale: float,
    bias: Float[Tensor, "query key"] | None = None,
    softcap: float | None = None,
) -> tuple[Float[Tensor, "row kv_head query d_head"], Float[Tensor, "row kv_head query"]]:
    """As ``attend``, by matrix products over chunks of queries, so that scores stay small in memory."""
    step = max(1, MAX_SCORES // max(1, q.shape[0] * q.shape[1] * k.shape[2]))
    outs, lses = [], []
    for start in range(0, max(1, q.shape[2]), step):
        scores = torch.matmul(q[:, :, start : start + step], k.mT).to(
            torch.promote_types(q.dtype, torch.float32)
        )
        scores = scores * scale
        scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
        scores = scores if bias is None else scores + bias[start : start + step]
        lses.append(scores.logsumexp(dim=-1))
        outs.append(torch.matmul((scores - lses[-1][..., None]).exp().to(v.dtype), v))
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)
