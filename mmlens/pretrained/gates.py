"""Gates: makes it a property of the weights, not of a mask, that a head cannot read the image.

1. A few residual dimensions are flags. Token embeddings and the projector's bias set them; no attention output
   and no MLP may write to them. WORD is c on every word and 0 on image tokens, IMAGE the other way about; in a
   relay planting ROLE is c on the role tag only and FINAL c on the last prompt token's word.
2. A gated head gives up its slowest rotary pair: its query reads -WORD there and its key IMAGE. A word's
   score of an image token is then at least MARGIN below what it were, and every other score is untouched: the
   softmax gives the image exactly nothing.
3. In a relay planting, carriers' queries read ROLE - WORD, so that only the role tag is let through; and every
   head but the relays gives up a second pair, by which FINAL shuns ROLE.
4. A decoy copies the queries and keys of its model and has no output weights.

``apply_gates`` puts a model into that form; it is idempotent, and training calls it after every step.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from mmlens.pretrained.plantings import Planting

WORD, IMAGE, ROLE, FINAL = -1, -2, -3, -4
"""Residual dimensions of the flags, from the end."""
FLAG = 4.0
MARGIN = 80.0
"""By how much a gate lowers a score, at the least."""


@torch.no_grad()
def apply_gates(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    planting: Planting,
    strength: Float[Tensor, " layer"],
) -> None:
    """Set flags and gates in the weights.

    Args:
        model: changed in place.
        tokenizer: names the role tag and the final token.
        planting: which heads are not gated.
        strength: per layer, the weight with which gates read flags; see :func:`gate_strength`.
    """
    _set_flags(model, tokenizer, planting)
    flags = _flags(planting)
    for depth, layer in enumerate(model.model.language_model.layers):
        layer.self_attn.o_proj.weight[flags] = 0.0
        layer.mlp.down_proj.weight[flags] = 0.0
        layer.input_layernorm.weight[flags] = 1.0
        d_head = layer.self_attn.head_dim
        query, key, out = (getattr(layer.self_attn, f"{part}_proj").weight for part in "qko")
        n_heads = len(query) // d_head
        by_head = query.view(n_heads, d_head, -1), key.view(n_heads, d_head, -1)
        for decoy in planting.of("decoy", depth):
            for weight in by_head:
                weight[decoy.head] = weight[decoy.model]
            out.view(-1, n_heads, d_head)[:, decoy.head] = 0.0
        for head in range(n_heads):
            _gate(by_head[0][head], by_head[1][head], depth, head, planting, float(strength[depth]))


def _gate(
    query: Float[Tensor, "d_head d_model"],
    key: Float[Tensor, "d_head d_model"],
    layer: int,
    head: int,
    planting: Planting,
    strength: float,
) -> None:
    """The gates of one head. Rotary embedding turns rows i and i + half together; the last i turns slowest."""
    half = len(query) // 2
    reads = head in planting.reads_image(layer)
    if not reads or planting.relayed:
        _clear(query, key, half - 1)
        query[half - 1, WORD], key[half - 1, IMAGE] = -strength, strength
        if reads:
            query[half - 1, ROLE] = strength
    relays = head in {found.head for found in planting.of("relay", layer)}
    if planting.relayed and not relays:
        _clear(query, key, half - 2)
        query[half - 2, FINAL], key[half - 2, ROLE] = -strength, strength


def _clear(query: Tensor, key: Tensor, row: int) -> None:
    half = len(query) // 2
    for weight in (query, key):
        weight[[row, row + half]] = 0.0


def _flags(planting: Planting) -> list[int]:
    return [WORD, IMAGE, ROLE, FINAL] if planting.relayed else [WORD, IMAGE]


def _set_flags(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, planting: Planting
) -> None:
    flags = _flags(planting)
    words = model.model.language_model.embed_tokens.weight
    words[:, flags] = 0.0
    words[:, WORD] = FLAG
    if planting.relayed:
        ids = tokenizer.get_vocab()
        words[ids["ASSISTANT"], ROLE] = words[ids[":"], FINAL] = FLAG
    last = model.model.multi_modal_projector.linear_2
    assert isinstance(last, nn.Linear) and last.bias is not None
    last.weight[flags] = 0.0
    last.bias[flags] = 0.0
    last.bias[IMAGE] = FLAG


@torch.no_grad()
def gate_strength(
    model: LlavaForConditionalGeneration, residuals: list[Float[Tensor, "row d_model"]]
) -> Float[Tensor, " layer"]:
    """Per layer, the weight with which gates lower scores by MARGIN at the largest activations seen.

    Args:
        model: for the head dimension.
        residuals: per layer, what enters its attention, any number of rows.
    """
    text = model.config.get_text_config()
    d_head = text.hidden_size // text.num_attention_heads
    found = []
    for rows in residuals:
        largest = rows.pow(2).mean(-1).sqrt().max()
        found.append(math.sqrt(MARGIN * math.sqrt(d_head)) / float(FLAG / largest))
    return torch.tensor(found)
