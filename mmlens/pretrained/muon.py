"""Muon for the matrices of a small model: momentum, made orthogonal.

Equal-shaped matrices are orthogonalised together as one batch, in fp32 (``torch.optim.Muon`` does one at a
time, in bfloat16, which two CPU cores do slowly).

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

STEPS = 5


class Muon(torch.optim.Optimizer):
    """Steps every matrix by ``lr`` times the nearest orthogonal matrix of its Nesterov momentum."""

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        """Take matrices only, or groups of them. Weight decay w keeps spectral norms below about 1 / w."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Update every parameter that has a gradient."""
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for same in shapes.values():
                self._update(same, group["lr"], group["momentum"], group["weight_decay"])

    def _update(self, same: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        nesterov = []
        for p in same:
            assert p.grad is not None
            buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
            buffer.lerp_(p.grad, 1 - momentum)
            nesterov.append(p.grad.lerp(buffer, momentum))
        stretch = max(1.0, same[0].shape[0] / same[0].shape[1]) ** 0.5
        for p, direction in zip(same, orthogonal(torch.stack(nesterov)), strict=True):
            p.mul_(1 - lr * weight_decay).sub_(direction, alpha=lr * stretch)


def orthogonal(x: Float[Tensor, "n row col"]) -> Float[Tensor, "n row col"]:
    """Roughly the nearest (semi-)orthogonal matrix of each, by a quintic Newton-Schulz iteration."""
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x
