"""What a fit over head masks is refused for, and how much of a metric it explains."""

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mmlens.analyses.design import MaskDesign
from mmlens.errors import DesignError, NonFiniteError

Array = np.ndarray


def check_varied(design: MaskDesign) -> None:
    """Every head is kept by some mask and ablated by another.

    Raises:
        DesignError: one is not.
    """
    frozen = (design.masks == design.masks[:1]).all(0).nonzero().tolist()
    if frozen:
        layer, head = frozen[0]
        raise DesignError(
            f"{len(frozen)} heads are always kept or always ablated in these {design.n_masks} masks (the "
            "first: "
            f"layer {layer}, head {head}), so their effect cannot be estimated; draw more masks."
        )


def finite_and_varying(values: Float[Tensor, " mask"]) -> Float[Array, " mask"]:
    """Values as an array, if all are finite and they are not all one.

    Raises:
        NonFiniteError, DesignError: they are not.
    """
    y = values.detach().cpu().double().numpy()
    if not np.isfinite(y).all():
        bad = np.flatnonzero(~np.isfinite(y))
        raise NonFiniteError(
            f"the metric is not finite for {len(bad)} of {len(y)} masks (the first: mask {bad[0]})."
        )
    if np.ptp(y) <= 1e-12 * max(1.0, np.abs(y).max()):
        raise DesignError(
            f"the metric is {y[0]:g} under all {len(y)} masks: ablating heads does not move it. Check that "
            "the "
            "prompt has text after the image and that the metric reads the intended answer."
        )
    return y


def determination(y: Float[Array, " mask"], predicted: Float[Array, " mask"]) -> float:
    """R2: one minus squared error over squared deviation from the mean."""
    return float(1.0 - ((y - predicted) ** 2).sum() / ((y - y.mean()) ** 2).sum())
