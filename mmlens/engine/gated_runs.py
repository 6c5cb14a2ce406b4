"""Gates over one shared prefix: only text after the image is computed, forwards and backwards.

1. Run the prompt once and keep what all gates share (``prefix``): a gate changes only what text after the image reads.
2. Run the suffix, layer by layer, with the gated attention of ``gated_attention``. All points share one row up to the
   first layer's attention.
3. Read the metric at the last position.

Exact up to rounding, in values and in gradients: ``gate_check`` holds it against whole forward passes. Gates as in
``gates``; running them over a shared prefix is ours.
"""

from typing import ClassVar, cast, final

from jaxtyping import Float
from torch import Tensor

from mmlens.engine.final_columns import final_columns
from mmlens.engine.gated_attention import gated_attention
from mmlens.engine.gates import GateFunction
from mmlens.engine.prefix import PrefixState, check_no_hooks, prefix_state, replacements
from mmlens.inputs import Inputs
from mmlens.interventions import HeadBaseline, ImageKV
from mmlens.metrics import Metric
from mmlens.model import HookedVLM
from mmlens.model.layer import Layer


@final
class GatedRuns(GateFunction):
    """Gates on one sample by the shared-prefix engine.

    Args:
        model: a HookedVLM.
        inputs: one sample without padding.
        metric: what to measure.
        baseline: what a closed head reads in place of every image token.

    Raises:
        EngineNotExact: the prompt or the model's hooks rule this engine out.
        AnswerError: the metric needs an answer that the sample lacks.
        EmptyGroup: no text stands after an image.
    """

    engine: ClassVar[str] = "prefix"

    def __init__(
        self,
        model: HookedVLM,
        inputs: Inputs,
        *,
        metric: Metric,
        baseline: HeadBaseline | ImageKV = "mean_image_tokens",
    ) -> None:
        super().__init__(model, inputs, metric=metric, baseline=baseline)
        self.state: PrefixState = prefix_state(model, inputs)
        self.replacements = replacements(self.state, baseline)
        self.columns = metric.columns(inputs)

    def run(self, gates: Float[Tensor, "point layer head"]) -> Float[Tensor, " point"]:
        """The metric at each point, in at least float32."""
        check_no_hooks(self.model)
        residual = self.state.residual[None, 0]
        for layer in range(self.shape[0]):
            residual = self._layer(residual, layer, gates[:, layer])
        return self.metric.read(final_columns(self.model, residual, self.columns), self.inputs)

    def _layer(
        self, residual: Float[Tensor, "row suffix d_model"], index: int, gates: Float[Tensor, "point head"]
    ) -> Float[Tensor, "point query d_model"]:
        layer, state = cast(Layer, self.model.blocks[index]), self.state
        residual, gates = (x.to(self.model.layer_device(index)) for x in (residual, gates))
        x, rope = layer.ln1(residual), state.ropes[index]
        if index == len(state.layers) - 1:  # the last position only
            q, k, v = layer.attn.project_last(x, rope)
            x, residual = x[:, -1:], residual[:, -1:]
        else:
            q, k, v = layer.attn.project(x)
            q, k = layer.attn.positioned(q, k, rope)
        z = gated_attention(
            q,
            k,
            v,
            gates,
            prefix=state.layers[index],
            replacement=None if self.replacements is None else self.replacements[index],
            scale=layer.attn.scale,
            softcap=layer.attn.softcap,
        )
        return layer.after_attention(residual, x, layer.add_attention(layer.attn.o_proj(z.flatten(2))))
