"""Which keys each query may read: causality and padding, in the form each attention kernel wants.

Closed positions hold the most negative finite number, not ``-inf``: a row that is closed everywhere (a padding
query) then gives a finite, unused result instead of NaN.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CausalMask:
    """Causal attention of the last ``n_query`` of ``n_key`` columns, with padding columns closed.

    Attributes:
        real: which key columns hold tokens rather than padding; None when all do.
        n_query: queries of this step (the last columns of the sequence).
        n_key: keys of this step (cached ones included).
    """

    real: Bool[Tensor, "batch key"] | None
    n_query: int
    n_key: int
    _made: dict[tuple[torch.device, torch.dtype], Tensor] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def is_plain_causal(self) -> bool:
        """True when a kernel's own causal flag says everything."""
        return self.real is None and self.n_query == self.n_key

    @property
    def is_open(self) -> bool:
        """True when nothing is closed: one new token that may read everything before it."""
        return self.real is None and self.n_query == 1

    def bias(self, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "#batch 1 query key"]:
        """Additive mask: 0 where a query may read a key, the lowest finite number where it may not.

        Made once a step and shared by its layers; nobody may write into it.
        """
        if (device, dtype) not in self._made:
            self._made[device, dtype] = self._bias(device, dtype)
        return self._made[device, dtype]

    def _bias(self, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "#batch 1 query key"]:
        query = torch.arange(self.n_key - self.n_query, self.n_key, device=device)
        key = torch.arange(self.n_key, device=device)
        allowed = (key[None, :] <= query[:, None])[None]
        if self.real is not None:
            allowed = allowed & self.real[:, None, :]
        closed = torch.finfo(dtype).min
        return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill(~allowed, closed)[:, None]
