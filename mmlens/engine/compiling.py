"""Layers through ``torch.compile``, on request.

One graph serves all layers of the same kind, because weights are arguments to it; a first layer, whose masks share one
row, and the last, which computes one position, have graphs of their own. On a CPU a layer is cut where the image is
read, because how many queries read it is another number every time. Another length of the suffix is compiled again,
then with lengths left open.
"""

import shutil
from collections.abc import Callable
from functools import cache
from typing import Any

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


@cache
def left_as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run as Python where compiled ones call it: its shapes follow the values that it is given.

    Always the same for the same function: graphs are compiled again for another one.
    """
    return torch.compiler.disable(function)
