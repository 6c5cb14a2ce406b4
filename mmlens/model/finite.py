"""Finding where NaN or infinity entered a run."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from mmlens.errors import NonFiniteError

if TYPE_CHECKING:
    from mmlens.inputs import Inputs
    from mmlens.model.hooked_vlm import HookedVLM


def raise_if_not_finite(model: "HookedVLM", out: Tensor, inputs: "Inputs") -> None:
    """Raises NonFiniteError naming the first hook point with NaN or infinity, if ``out`` holds any.

    The second, diagnosing pass runs only after a failure, under the same hooks.
    """
    if bool(torch.isfinite(out).all()):
        return
    rows = (~torch.isfinite(out)).flatten(1).any(dim=1).nonzero().flatten().tolist()
    raise NonFiniteError(
        f"NaN or infinity in the output of samples {rows}; {_first_bad_hook(model, inputs)}. Check the pixels, the "
        "weights (mmlens verify MODEL) and any hook or patch you attached; float16 overflows, use bfloat16 or float32."
    )


def _first_bad_hook(model: "HookedVLM", inputs: "Inputs") -> str:
    bad: list[str] = []

    def look(tensor: Tensor, hook: HookPoint) -> None:
        if not bool(torch.isfinite(tensor).all()):
            bad.append(hook.name or "")

    watched = lambda name: not name.endswith(("hook_attn_scores", "hook_pattern", "hook_result"))  # noqa: E731
    with torch.no_grad(), model.hooks(fwd_hooks=[(watched, look)]):
        model.logits(model.decode(model.embed_inputs(inputs), inputs, layers=range(model.cfg.n_layers)))
    return f"it first appears at {bad[0]}" if bad else "it does not appear in a pass from the pixels"
