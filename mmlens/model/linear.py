"""Linear maps and embeddings whose weights may be stored in another precision than they compute in.

A checkpoint in bfloat16 or float16 stays mapped as it is; each weight is cast to the dtype of the activations
only while it is used. So a half-precision checkpoint computes in float32 on a CPU without a second copy of
the model in memory, and a float32 checkpoint pays nothing.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, dtype, nn


class Linear(nn.Linear):
    """``nn.Linear`` that computes in the dtype of its input."""

    def forward(self, input: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """Returns ``input @ weight.T + bias`` in the dtype of ``input``."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class Embedding(nn.Embedding):
    """``nn.Embedding`` that returns rows in a requested dtype."""

    def rows(self, ids: Int[Tensor, "*pos"], compute_dtype: dtype) -> Float[Tensor, "*pos width"]:
        """Rows of the table for ``ids``, cast after the look-up."""
        return F.embedding(ids, self.weight).to(compute_dtype)
