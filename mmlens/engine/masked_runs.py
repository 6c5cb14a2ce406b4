"""The fast path: head masks over one shared prefix.

1. Run the prompt once and keep what all masks share (``prefix``).
2. Sort the masks by the first layer in which they ablate a head; a batch starts there, from the clean
   residual.
3. Per layer: norm, queries, keys and values of the suffix, shared-prefix attention, output projection, MLP.
   The first layer has one row for all masks, because they still agree. The last layer computes the last
   position only.
4. Unembed the last position, for the vocabulary columns that the metric reads.

Exact up to rounding: ``self_check`` holds it against the plain path. Source: shared prefix as in Hydragen
(Juravsky et al. 2024, arXiv 2402.05099).
"""

from collections.abc import Callable
from typing import ClassVar, cast, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmlens.engine.batching import auto_batch_size
from mmlens.engine.compiling import compiled, left_as_it_is
from mmlens.engine.final_columns import final_columns
from mmlens.engine.image_segment import ReadImage, read_by_all_heads, read_by_open_heads
from mmlens.engine.prefix import PrefixState, check_no_hooks, prefix_state, replacements
from mmlens.engine.runs import MaskedRuns
from mmlens.engine.shared_prefix import LayerPrefix, Replacement, shared_prefix_attention
from mmlens.inputs import Inputs
from mmlens.interventions import HeadBaseline, ImageKV
from mmlens.metrics import Metric
from mmlens.model import HookedVLM
from mmlens.model.layer import Layer
from mmlens.model.rotary import Rope


@final
class PrefixRuns(MaskedRuns):
    """Runs head masks of one sample by the shared-prefix engine.

    Args:
        model: a HookedVLM.
        inputs: one sample without padding.
        metric: what to measure.
        baseline: what ablated heads read.
        batch_size: masks run together; None chooses by size and free memory.
        compile: whether layers run through ``torch.compile``, which takes up to a minute to compile; a tenth faster
            where it was measured, on one and on two CPU threads.

    Raises:
        EngineNotExact: the prompt or the model's hooks rule this engine out.
        ConfigError: there is no compiler for ``compile``.
        AnswerError: the metric needs an answer that the sample lacks.
    """

    engine: ClassVar[str] = "prefix"

    def __init__(
        self,
        model: HookedVLM,
        inputs: Inputs,
        *,
        metric: Metric,
        baseline: HeadBaseline | ImageKV = "mean_image_tokens",
        batch_size: int | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(
            model,
            inputs,
            metric=metric,
            baseline=baseline,
            batch_size=1 if batch_size is None else batch_size,
        )
        self.state: PrefixState = prefix_state(model, inputs)
        if batch_size is None:
            self.batch_size = auto_batch_size(
                model.cfg,
                n_suffix=self.state.n_suffix,
                n_system=self.state.layers[0].k_system.shape[1],
                device=model.device,
                dtype=model.dtype,
                compiled=compile,
            )
        self.replacements = replacements(self.state, baseline)
        self.columns = metric.columns(inputs)
        self._step: Callable[..., Tensor] = compiled(masked_layer, model.device) if compile else masked_layer
        self._by_open_heads: ReadImage = left_as_it_is(read_by_open_heads) if compile else read_by_open_heads

    def check_ready(self) -> None:
        """No hooks may have been added: this engine would pass them by."""
        check_no_hooks(self.model)

    def order(self, masks: Bool[Tensor, "mask layer head"]) -> Tensor:
        """Masks that leave many lower layers alone come last, together."""
        return _first_ablated(masks).argsort(stable=True)

    def run_batch(self, masks: Bool[Tensor, "mask layer head"]) -> Float[Tensor, " mask"]:
        """The metric under a batch of masks, in at least float32."""
        n_layers = len(self.state.layers)
        start = int(_first_ablated(masks).min())
        residual = self.state.final if start == n_layers else self.state.residual[None, start]
        masks = masks.to(residual.device)
        for layer in range(start, n_layers):
            residual = self._layer(residual, layer, masks[:, layer])
        logits = final_columns(self.model, residual[:, -1:], self.columns).expand(len(masks), -1)
        return self.metric.read(logits, self.inputs)

    def _layer(
        self,
        residual: Float[Tensor, "row suffix d_model"],
        index: int,
        keep: Bool[Tensor, "mask head"],
    ) -> Float[Tensor, "mask query d_model"]:
        layer, state, device = (
            cast(Layer, self.model.blocks[index]),
            self.state,
            self.model.layer_device(index),
        )
        replacement = None if self.replacements is None else self.replacements[index]
        shared = state.layers[index], state.ropes[index], replacement
        last = index == len(state.layers) - 1
        given = (residual.to(device), keep.to(device))
        read_image = self._by_open_heads if device.type == "cpu" else read_by_all_heads
        return self._step(layer, *given, *shared, read_image=read_image, last=last)


def masked_layer(
    layer: Layer,
    residual: Float[Tensor, "row suffix d_model"],
    keep: Bool[Tensor, "mask head"],
    prefix: LayerPrefix,
    rope: Rope | None,
    replacement: Replacement | None,
    *,
    read_image: ReadImage,
    last: bool,
) -> Float[Tensor, "mask query d_model"]:
    """The residual stream of the suffix after one layer, under every mask.

    Args:
        layer: the layer.
        residual: residual stream before it; one row for all masks where they still agree.
        keep: which of its heads read the image.
        prefix: keys and values before the suffix.
        rope: rotary tables of the suffix.
        replacement: what the other heads read.
        read_image: how the image segment is computed.
        last: whether only the last position is wanted.
    """
    x, attn = layer.ln1(residual), layer.attn
    if last:
        q, k, v = attn.project_last(x, rope)
        x, residual = x[:, -1:], residual[:, -1:]
    else:
        q, k, v = attn.project(x)
        q, k = attn.positioned(q, k, rope)
    shared = {"prefix": prefix, "keep": keep, "replacement": replacement, "read_image": read_image}
    z = shared_prefix_attention(q, k, v, **shared, scale=attn.scale, softcap=attn.softcap)
    return layer.after_attention(residual, x, layer.add_attention(attn.o_proj(z.flatten(2))))


def _first_ablated(masks: Bool[Tensor, "mask layer head"]) -> Tensor:
    """First layer in which each mask ablates a head; the number of layers if none."""
    ablates = ~masks.all(dim=2)
    return torch.where(ablates.any(dim=1), ablates.int().argmax(dim=1), masks.shape[1])
