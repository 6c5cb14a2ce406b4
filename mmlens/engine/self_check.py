"""Does the fast path agree with the plain path, on this model and this prompt?"""

import torch

from mmlens.engine.masked_runs import PrefixRuns
from mmlens.engine.plain import PlainRuns
from mmlens.errors import EngineNotExact

TOLERANCE = 1e-4
"""Largest allowed difference, relative to the metric's size (at least 1), in float32 and wider."""


def check_against_plain(runs: PrefixRuns, *, n_masks: int = 2, generator: torch.Generator) -> float:
    """Compares the engine with whole forward passes under random head masks.

    Args:
        runs: the prompt, prepared for the engine.
        n_masks: how many random masks (each head kept with probability 0.5).
        generator: source of the masks, on the CPU.

    Returns:
        Largest difference of the metric, divided by max(1, abs(metric)).

    Raises:
        EngineNotExact: the difference is larger than rounding explains.
    """
    masks = torch.rand(n_masks, *runs.shape, generator=generator) < 0.5
    plain = PlainRuns(
        runs.model, runs.inputs, metric=runs.metric, baseline=runs.baseline, batch_size=n_masks
    )(masks)
    scale = max(1.0, float(plain.abs().max()))
    difference = float((runs(masks) - plain).abs().max()) / scale
    allowed = max(
        TOLERANCE, 8 * torch.finfo(runs.state.residual.dtype).eps
    )  # half precision cannot do better
    if not difference <= allowed:
        raise EngineNotExact(
            f"the prefix engine and the plain path differ by {difference:.2g} (relative; allowed "
            f"{allowed:.2g}) on "
            f"{n_masks} random head masks of this prompt. Use engine='plain', and please report the model."
        )
    return difference
