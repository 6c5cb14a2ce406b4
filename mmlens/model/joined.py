"""Matrices that a checkpoint stores as one, multiplied as one.

Phi-3 stores queries, keys and values in a single matrix. Its parts are views of it; one product over the whole is what
Hugging Face computes, bit for bit, and it is faster than three.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mmlens.model.linear import Linear, product


def joined_products(
    x: Float[Tensor, "*rows d_in"], maps: tuple[Linear, ...]
) -> tuple[Float[Tensor, "*rows _"], ...]:
    """The outputs of several maps of the same input; one product if their weights lie one after another in memory."""
    compiling = torch.compiler.is_compiling()  # a graph cannot look at addresses
    if compiling or any(linear.is_packed for linear in maps):
        return tuple(linear(x) for linear in maps)
    weight = _joined([linear.weight for linear in maps])
    if weight is None or any(linear.bias is not None for linear in maps):
        return tuple(linear(x) for linear in maps)
    widths = [linear.weight.shape[0] for linear in maps]
    return product(x, weight).split(widths, dim=-1)


def _joined(weights: list[Tensor]) -> Tensor | None:
    """One view over matrices that adjoin in the same storage; None if they do not, or if their gradients are wanted."""
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
        return None
    first, end = weights[0], weights[0].data_ptr()
    storage = first.untyped_storage().data_ptr()
    for weight in weights:
        adjoins = weight.data_ptr() == end and weight.untyped_storage().data_ptr() == storage
        if not adjoins or weight.dtype != first.dtype or not weight.is_contiguous():
            return None
        end += weight.nbytes
    n_rows = sum(weight.shape[0] for weight in weights)
    return first.detach().as_strided((n_rows, first.shape[1]), (first.shape[1], 1))
