"""Do gates over a shared prefix agree with whole forward passes, on this model and this prompt?"""

import torch
from jaxtyping import Float
from torch import Tensor

from mmlens.engine.gated_runs import GatedRuns
from mmlens.engine.gates import GateFunction
from mmlens.engine.plain_gates import PlainGates
from mmlens.engine.self_check import TOLERANCE
from mmlens.errors import EngineNotExact
from mmlens.metrics import check_finite


def check_gates_against_plain(runs: GatedRuns, *, generator: torch.Generator) -> float:
    """Compares the metric and its slope by every gate at one random point with those of a whole forward pass.

    Args:
        runs: the prompt, prepared for the engine.
        generator: source of the point, uniform in [0, 1] for each head, on the CPU.

    Returns:
        Largest difference of the metric or a slope, divided by the largest of both (at least 1).

    Raises:
        EngineNotExact: the difference is larger than rounding explains.
        NonFiniteError: the metric is not finite.
    """
    point = torch.rand(1, *runs.shape, generator=generator).to(runs.model.device, runs.dtype)
    plain = PlainGates(runs.model, runs.inputs, metric=runs.metric, baseline=runs.baseline)
    fast, slow = _value_and_slopes(runs, point), _value_and_slopes(plain, point)
    difference = float((fast - slow).abs().max()) / max(1.0, float(slow.abs().max()))
    allowed = max(TOLERANCE, 8 * torch.finfo(runs.model.dtype).eps)  # half precision cannot do better
    if not difference <= allowed:
        raise EngineNotExact(
            f"gates over the shared prefix and gates on whole forward passes differ by {difference:.2g} (relative; "
            f"allowed {allowed:.2g}) at one random point of this prompt. Use engine='plain', and please report the "
            "model."
        )
    return difference


def _value_and_slopes(
    runs: GateFunction, point: Float[Tensor, "1 layer head"]
) -> Float[Tensor, " value_and_slopes"]:
    with torch.enable_grad():
        gates = point.clone().requires_grad_(True)
        value = runs(gates)
        check_finite(value.detach(), runs.metric)
        slopes = (
            torch.autograd.grad(value.sum(), gates)[0] if value.requires_grad else torch.zeros_like(gates)
        )
    return torch.cat([value.detach().double().cpu(), slopes.flatten().double().cpu()])
