"""What torch counts while the engine runs, to hold the formula of ``mmlens.recipes.engine_work`` against."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mmlens.recipes.engine_work import PromptParts
from tests.benchmarks.shape import Shape
from tests.benchmarks.timing import Run


def parts_of(shape: Shape) -> PromptParts:
    return PromptParts(n_system=shape.n_system, n_image=shape.n_image, n_suffix=shape.n_suffix)


def counted_flops(run: Run, masks: torch.Tensor) -> float:
    """Operations per mask in matrix products and attention; the CPU's fused kernel, which torch has no count for,
    by its shapes."""
    fused: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={fused: attention_flops}) as counter:
        run(masks)
    return counter.get_total_flops() / len(masks)


def attention_flops(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    batch, heads, n_query, d_head = q
    return 2 * batch * heads * n_query * k[2] * (d_head + v[3])
