"""Interventions on the unmodified Hugging Face model through nnsight: a second oracle, by other people's code.

``Block`` edits the attention mask that a layer's attention receives; ``Zero(at="z")`` edits what its output projection
receives. One pass over the prompt; no decoding. Source of the recipe: nnsight 0.8 documentation (``trace``, ``inputs``,
``save``); labels of traced source lines are avoided because they change between versions.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmlens.errors import InterventionError
from mmlens.inputs import Inputs
from mmlens.interventions import Block, Intervention, Zero
from mmlens.reference.attention import attention_named
from mmlens.reference.hf import embeddable, heads_of, listed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def nnsight_logits(
    hf_model: "PreTrainedModel", inputs: Inputs, interventions: Sequence[Intervention] | Intervention = ()
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of the Hugging Face model under interventions, carried out by nnsight.

    Args:
        hf_model: a LLaVA; left as it was.
        inputs: prompts with pixels.
        interventions: ``Zero(at="z")`` and ``Block`` (closing scores).

    Raises:
        InterventionError: an intervention that this oracle does not know.
    """
    import nnsight

    chosen = listed(interventions)
    blocks = [i for i in chosen if isinstance(i, Block) and i.renormalise]
    zeros = [i for i in chosen if isinstance(i, Zero) and i.at == "z"]
    if len(blocks) + len(zeros) != len(chosen):
        raise InterventionError(
            "the nnsight oracle knows Zero(at='z') and Block(renormalise=True); given "
            f"{[type(i).__name__ for i in chosen]}."
        )
    hf_model = _same_weights(hf_model)
    wrapped: Any = nnsight.NNsight(hf_model)
    with attention_named(hf_model, "eager"), embeddable(hf_model, inputs) as input_ids:
        batch = {
            "input_ids": input_ids,
            "attention_mask": inputs.attention_mask,
            "position_ids": inputs.position_ids,
            "pixel_values": inputs.pixel_values,
        }
        n_layers = len(hf_model.model.language_model.layers)  # type: ignore[union-attr]
        edges = [_closed_edges(blocks, layer, hf_model, inputs) for layer in range(n_layers)]
        kept = [_kept_inputs(zeros, layer, hf_model, inputs) for layer in range(n_layers)]
        with wrapped.trace(**batch):
            for layer, block in enumerate(wrapped.model.language_model.layers):
                args, kwargs = block.self_attn.inputs
                mask = kwargs["attention_mask"].expand_as(edges[layer])
                kwargs["attention_mask"] = mask.masked_fill(edges[layer], torch.finfo(mask.dtype).min)
                block.self_attn.inputs = (args, kwargs)
                block.self_attn.o_proj.input = block.self_attn.o_proj.input * kept[layer]
            logits = wrapped.output.logits.save()
    return logits


def _same_weights(hf_model: "PreTrainedModel") -> "PreTrainedModel":
    """New modules around the same parameters, because nnsight leaves its mark on what it wraps."""
    shared = {id(tensor): tensor for tensor in (*hf_model.parameters(), *hf_model.buffers())}
    return copy.deepcopy(hf_model, shared)


def _closed_edges(blocks: list[Block], layer: int, hf_model: Any, inputs: Inputs) -> Tensor:
    n_heads = hf_model.config.text_config.num_attention_heads
    closed = torch.zeros(inputs.batch_size, n_heads, inputs.n_pos, inputs.n_pos, dtype=torch.bool)
    for block in blocks:
        edges = inputs.mask(block.dst)[:, :, None] & inputs.mask(block.src)[:, None, :]  # type: ignore[arg-type]
        for head in heads_of(block, layer, n_heads):
            closed[:, head] |= edges
    return closed


def _kept_inputs(zeros: list[Zero], layer: int, hf_model: Any, inputs: Inputs) -> Tensor:
    """Factor of the output projection's inputs: 0 at chosen heads and positions, else 1."""
    attn = hf_model.model.language_model.layers[layer].self_attn
    n_heads = hf_model.config.text_config.num_attention_heads
    kept = torch.ones(inputs.batch_size, inputs.n_pos, n_heads, attn.head_dim, dtype=hf_model.dtype)
    for zero in zeros:
        for head in heads_of(zero, layer, n_heads):
            kept[:, :, head][inputs.mask(zero.pos)] = 0.0  # type: ignore[arg-type]
    return kept.flatten(2)
