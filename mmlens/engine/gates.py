"""The metric of one prompt as a function of gates on its heads, one gate for each layer and query head.

Where text after the image reads, a head's output is ``g · z(image) + (1 − g) · z(baseline)``: at g = 1 the model as it
is, at g = 0 what ``HeadMask`` makes of an ablated head. Between the two the function is smooth, so that it can be
differentiated by the gates.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mmlens.errors import EmptyGroup, InterventionError, ShapeError
from mmlens.inputs import Inputs
from mmlens.interventions import HEAD_BASELINES, HeadBaseline, ImageKV
from mmlens.metrics import Metric, check_answers
from mmlens.model import HookedVLM


class GateFunction(ABC):
    """One sample, one metric, one baseline; call it with gates.

    Args:
        model: a HookedVLM.
        inputs: one sample.
        metric: what to measure.
        baseline: what a closed head reads in place of every image token.

    Attributes:
        engine: ``prefix`` or ``plain``.

    Raises:
        AnswerError: the metric needs an answer that the sample lacks.
        EmptyGroup: no text stands after an image.
        InterventionError: the baseline is unknown.
        ShapeError: there is not one sample.
    """

    engine: ClassVar[str]

    def __init__(
        self, model: HookedVLM, inputs: Inputs, *, metric: Metric, baseline: HeadBaseline | ImageKV
    ) -> None:
        if inputs.batch_size != 1:
            raise ShapeError(f"gates are on one sample, not {inputs.batch_size}: inputs.select([i]).")
        if not isinstance(baseline, ImageKV) and baseline not in HEAD_BASELINES:
            raise InterventionError(
                f"baseline {baseline!r} is unknown; known: {', '.join(HEAD_BASELINES)}, or an ImageKV."
            )
        image = inputs.image_mask[0]
        if not bool(image.any()) or bool(image[-1]):
            raise EmptyGroup("gates act where text after an image reads it; the prompt has no such text.")
        check_answers(inputs, model.cfg.d_vocab, metric)
        self.model, self.inputs, self.metric = model, inputs, metric
        self.baseline: HeadBaseline | ImageKV = baseline

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and heads of the model."""
        return self.model.cfg.n_layers, self.model.cfg.n_heads

    @property
    def dtype(self) -> torch.dtype:
        """What gates are kept in: the model's precision, at least float32."""
        return torch.promote_types(self.model.dtype, torch.float32)

    def __call__(self, gates: Float[Tensor, "point layer head"]) -> Float[Tensor, " point"]:
        """The metric at each point, in its unit; differentiable by the gates where they ask for a gradient.

        All points run together, so memory grows with their number.

        Args:
            gates: 1 = the head reads the image, 0 = the baseline.

        Raises:
            ShapeError: the gates are not Float[point, layer, head] of this model.
            EngineNotExact: hooks were added to the model, which this engine does not run.
        """
        if not gates.is_floating_point() or gates.shape[1:] != self.shape or len(gates) == 0:
            raise ShapeError(
                f"gates must be Float[point, layer, head] = [n, {self.shape[0]}, {self.shape[1]}], n > 0; given "
                f"{gates.dtype} {list(gates.shape)}."
            )
        return self.run(gates)

    @abstractmethod
    def run(self, gates: Float[Tensor, "point layer head"]) -> Float[Tensor, " point"]:
        """The metric at each point, in at least float32."""
