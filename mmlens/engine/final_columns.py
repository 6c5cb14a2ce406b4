"""The last position's logits, for the vocabulary columns that a metric reads."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlens.model import HookedVLM
from mmlens.model.linear import product


def final_columns(
    model: HookedVLM, residual: Float[Tensor, "row 1 d_model"], columns: Int[Tensor, "1 column"] | None
) -> Float[Tensor, "row column"]:
    """Logits in at least float32, capped where the model caps them; differentiable by the residual stream.

    Args:
        model: gives the final norm and the unembedding.
        residual: residual stream of the last position after the last layer.
        columns: ids of one sample, as ``Metric.columns`` gives them; None for the whole vocabulary.
    """
    x = model.ln_final(residual)[:, 0]
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    weight, bias = model.unembed.weight, model.unembed.bias
    if columns is not None:
        ids = columns[0].to(weight.device)
        weight, bias = weight[ids], None if bias is None else bias[ids]
    return model.capped(product(x, weight, bias).to(model.device))
