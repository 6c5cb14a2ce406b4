"""How many head masks run together: as many as keep matrix products busy, as long as memory holds them.

1. Two thousand rows (masks × suffix positions) keep a CPU busy, twice as many a GPU or compiled graphs.
2. What one mask needs follows from the configuration; a batch may take a part of the memory that is free.
3. Should memory run out all the same, ``MaskedRuns`` halves its batch and goes on.

The estimate is ours: activations of one layer, and the scores that the explicit kernel may hold.
"""

import psutil
import torch

from mmlens.config import ModelConfig
from mmlens.engine.kernels import MAX_SCORES

_CPU_ROWS, _MANY_ROWS = 2048, 4096
"""Rows that keep matrix products busy."""
_MOST_MASKS = 256
_SHARE = 0.5
"""Part of the free memory that a batch may take: the estimate leaves out fragmentation and what kernels need."""


def auto_batch_size(
    cfg: ModelConfig,
    *,
    n_suffix: int,
    n_system: int,
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool = False,
) -> int:
    """Masks that run together.

    Args:
        cfg: the model's configuration.
        n_suffix: positions after the image.
        n_system: tokens before the suffix that are no image tokens.
        device: where the model computes.
        dtype: what it computes in.
        compiled: whether layers run as compiled graphs, which profit from more rows.
    """
    busy = (_CPU_ROWS if device.type == "cpu" and not compiled else _MANY_ROWS) // n_suffix
    each = mask_bytes(cfg, n_suffix=n_suffix, n_system=n_system, dtype=dtype)
    held = (_SHARE * free_bytes(device) - MAX_SCORES * 8) / each
    return max(1, min(_MOST_MASKS, busy, int(held)))


def mask_bytes(cfg: ModelConfig, *, n_suffix: int, n_system: int, dtype: torch.dtype) -> int:
    """Bytes that one more mask takes at the widest place of a layer.

    That is the larger of attention (queries, both segments' outputs and the merge; keys and values of the own segment,
    copied behind the system tokens) and MLP (gate, up and their product), each beside the residual stream and its
    normalised copy.

    Args:
        cfg: the model's configuration.
        n_suffix: positions after the image.
        n_system: tokens before the suffix that are no image tokens.
        dtype: what the model computes in.
    """
    heads, kv = cfg.n_heads * cfg.d_head, cfg.n_key_value_heads * cfg.d_head
    attention = n_suffix * (5 * heads + 3 * kv) + 2 * (n_system + n_suffix) * kv
    mlp = n_suffix * 4 * cfg.d_mlp
    return (n_suffix * 3 * cfg.d_model + max(attention, mlp)) * dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Memory that could be taken now: of the GPU, with what PyTorch holds in reserve, or of the machine."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    return int(psutil.virtual_memory().available)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or by the CPU's allocator."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
