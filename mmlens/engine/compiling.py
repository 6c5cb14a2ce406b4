"""Layers through ``torch.compile``, on request.

One graph serves all layers of the same kind, because weights are arguments to it; a first layer, whose masks share one
row, and the last, which computes one position, have graphs of their own. Another length of the suffix is compiled
again, then with lengths left open.
"""

import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from mmlens.errors import ConfigError

_COMPILERS = ("c++", "g++", "clang++", "cl")


def compiled(function: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """The function, compiled at its first call.

    Args:
        function: made of tensor operations.
        device: where it runs; on a CPU, PyTorch needs a C++ compiler.

    Raises:
        ConfigError: there is none.
    """
    if device.type == "cpu" and not any(shutil.which(name) for name in _COMPILERS):
        raise ConfigError(
            f"compile=True needs a C++ compiler ({', '.join(_COMPILERS)}), and none is on the PATH: install one, or "
            "leave compile out."
        )
    return torch.compile(function)
