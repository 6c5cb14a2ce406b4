"""The plain path: every head mask is a whole forward pass with ``HeadMask`` hooks. The engine's oracle."""

from typing import ClassVar, final

from jaxtyping import Bool, Float
from torch import Tensor

from mmlens.engine.runs import MaskedRuns
from mmlens.inputs import Inputs
from mmlens.interventions import HeadBaseline, HeadMask, ImageKV
from mmlens.metrics import Metric
from mmlens.model import HookedVLM


@final
class PlainRuns(MaskedRuns):
    """Runs head masks of one sample through the hooked model, several masks as one batch.

    Args:
        model: a HookedVLM.
        inputs: one sample.
        metric: what to measure.
        baseline: what ablated heads read.
        batch_size: masks run together; None for 8.
    """

    engine: ClassVar[str] = "plain"

    def __init__(
        self,
        model: HookedVLM,
        inputs: Inputs,
        *,
        metric: Metric,
        baseline: HeadBaseline | ImageKV = "mean_image_tokens",
        batch_size: int | None = None,
    ) -> None:
        super().__init__(
            model,
            inputs,
            metric=metric,
            baseline=baseline,
            batch_size=8 if batch_size is None else batch_size,
        )

    def run_batch(self, masks: Bool[Tensor, "mask layer head"]) -> Float[Tensor, " mask"]:
        """The metric under a batch of masks, in at least float32."""
        inputs = self.inputs.select([0] * len(masks))
        edits = [] if bool(masks.all()) else [HeadMask(mask=masks, baseline=self.baseline)]
        return self.metric(self.model.run(inputs, edits, strict=False, logits_pos="final").logits, inputs)
