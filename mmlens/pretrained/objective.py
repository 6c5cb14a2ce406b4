"""What the scenes model is trained on: answers, and two auxiliary losses that stand in for pretraining.

1. Run the tower, project, put the image tokens into the sequence, run the decoder under the packed mask.
2. Answer loss: cross-entropy of each answer (and a light one for the end token behind it).
3. Dense loss (the stand-in for CLIP's pretraining): linear heads read class, colour, digit value, "in the
   box", "one cell of each object", row and column off every cell of the tower.
4. Alignment loss (the stand-in for LLaVA's first stage): a projected cell that shows an object lies nearer to
   the word embedding of its class, and of its colour, and of the digit, than to those of the others.

Losses 3 and 4 put labels into image tokens by construction. For some images the text may not read the image
in the first layers (``PackedBatch.open_from``), so that reading spreads over layers, by construction too.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from mmlens.datasets.scenes import CLASSES, COLOURS, DIGITS
from mmlens.pretrained.architecture import D_MODEL
from mmlens.pretrained.batches import N_CELLS, SIDE, PackedBatch

DENSE_WEIGHT, ALIGN_WEIGHT, END_WEIGHT = 0.8, 0.2, 0.05
SHARPNESS = 10.0
"""Factor on the cosines of the alignment loss."""


class AuxiliaryHeads(nn.Module):
    """Linear readers of the dense loss and words of the alignment loss; no part of the shipped model."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Start the readers; remember the token ids of classes and colours."""
        super().__init__()
        self.class_ids: Tensor
        self.colour_ids: Tensor
        self.digit_ids: Tensor
        self.classes = nn.Linear(D_MODEL, 1 + len(CLASSES))
        self.colours = nn.Linear(D_MODEL, 1 + len(COLOURS))
        self.boxed = nn.Linear(D_MODEL, 2)
        self.values = nn.Linear(D_MODEL, 1 + len(DIGITS))
        self.anchors = nn.Linear(D_MODEL, 2)
        self.places = nn.Linear(D_MODEL, 2 * SIDE)
        ids = tokenizer.convert_tokens_to_ids
        self.register_buffer("class_ids", torch.tensor(ids(list(CLASSES))), persistent=False)
        self.register_buffer("colour_ids", torch.tensor(ids(list(COLOURS))), persistent=False)
        self.register_buffer("digit_ids", torch.tensor(ids(list(DIGITS))), persistent=False)

    def dense(self, cells: Float[Tensor, "batch cell d_model"], batch: PackedBatch) -> Float[Tensor, ""]:
        """Weighted mean of the readers' cross-entropies.

        The box is read only on cells that show an object, and a digit's value, at half weight, only on cells
        that show one.
        """
        shown, digit = batch.cell_class > 0, batch.cell_value > 0
        loss = F.cross_entropy(self.classes(cells).flatten(0, 1), batch.cell_class.flatten())
        loss = loss + F.cross_entropy(self.colours(cells).flatten(0, 1), batch.cell_colour.flatten())
        loss = loss + F.cross_entropy(self.anchors(cells).flatten(0, 1), batch.cell_anchor.flatten())
        loss = loss + F.cross_entropy(self.boxed(cells[shown]), batch.cell_boxed[shown])
        rows, columns = self.places(cells).flatten(0, 1).split(SIDE, -1)
        place = torch.arange(N_CELLS).repeat(len(cells))
        loss = loss + F.cross_entropy(rows, place // SIDE) + F.cross_entropy(columns, place % SIDE)
        values = F.cross_entropy(self.values(cells[digit]), batch.cell_value[digit], reduction="sum")
        return (loss + values / digit.sum().clamp(min=1) / 2) / 6.5

    def align(
        self,
        projected: Float[Tensor, "batch cell d_model"],
        words: Float[Tensor, "d_vocab d_model"],
        batch: PackedBatch,
    ) -> Float[Tensor, ""]:
        """Mean of the contrastive losses over the cells that show an object (a digit)."""
        words = F.normalize(words, dim=-1)
        pairs = [(batch.cell_class, self.class_ids), (batch.cell_colour, self.colour_ids)]
        if (batch.cell_value > 0).any():
            pairs.append((batch.cell_value, self.digit_ids))
        total = projected.new_zeros(())
        for labels, ids in pairs:
            shown = labels > 0
            cosines = F.normalize(projected[shown], dim=-1) @ words[ids].T
            total = total + F.cross_entropy(SHARPNESS * cosines, labels[shown] - 1)
        return total / len(pairs)


@dataclass(frozen=True, kw_only=True)
class Losses:
    """One batch's losses; ``right`` says which questions were answered rightly."""

    total: Float[Tensor, ""]
    answer: Float[Tensor, ""]
    dense: Float[Tensor, ""]
    align: Float[Tensor, ""]
    right: Bool[Tensor, "question"]


def losses(
    model: LlavaForConditionalGeneration,
    heads: AuxiliaryHeads | None,
    batch: PackedBatch,
    eos: int,
    *,
    align_weight: float = ALIGN_WEIGHT,
) -> Losses:
    """Steps 1-4 on one batch.

    Args:
        model: The model in training.
        heads: Readers of the dense loss; None leaves the auxiliary losses out, and opens every layer.
        batch: Packed questions.
        eos: Id of the end token.
        align_weight: Weight of the alignment loss.
    """
    inner = model.model
    cells = inner.vision_tower(batch.pixel_values).last_hidden_state[:, 1:]
    projected = inner.multi_modal_projector(cells)
    words = inner.language_model.embed_tokens
    start = words(batch.input_ids[:, : batch_start(batch)])
    rest = words(batch.input_ids[:, batch_start(batch) + N_CELLS :])
    with nullcontext() if heads is None else early_layers_closed(inner.language_model.layers, batch):
        hidden = inner.language_model(
            inputs_embeds=torch.cat([start, projected, rest], 1),
            attention_mask=batch.attention_mask(),
            position_ids=batch.position_ids,
            use_cache=False,
        ).last_hidden_state
    sample, position = batch.answer_at.unbind(1)
    logits: Float[Tensor, "question d_vocab"] = model.lm_head(hidden[sample, position])
    ends: Float[Tensor, "question d_vocab"] = model.lm_head(hidden[sample, position + 1])
    answer = F.cross_entropy(logits, batch.answer)
    end = F.cross_entropy(ends, torch.full_like(batch.answer, eos))
    if heads is None:
        dense = align = answer.new_zeros(())
    else:
        dense, align = heads.dense(cells, batch), heads.align(projected, words.weight, batch)
    total = answer + END_WEIGHT * end + DENSE_WEIGHT * dense + align_weight * align
    right = logits.argmax(-1) == batch.answer
    return Losses(total=total, answer=answer, dense=dense, align=align, right=right)


def tower_losses(model: LlavaForConditionalGeneration, heads: AuxiliaryHeads, batch: PackedBatch) -> Losses:
    """Step 3 alone, at full weight: the tower's own pretraining. No question is asked."""
    dense = heads.dense(model.model.vision_tower(batch.pixel_values).last_hidden_state[:, 1:], batch)
    none = dense.new_zeros(())
    right = torch.zeros(0, dtype=torch.bool)
    return Losses(total=dense, answer=none, dense=dense, align=none, right=right)


def early_layers_closed(layers: Iterable[nn.Module], batch: PackedBatch) -> AbstractContextManager[None]:
    """Inside, every decoder layer gets the mask of its own depth."""
    pairs = enumerate(layers)
    return masks_replaced(
        (layer, batch.attention_mask(depth)) for depth, layer in pairs if (batch.open_from > depth).any()
    )


@contextmanager
def masks_replaced(
    pairs: Iterable[tuple[nn.Module, Float[Tensor, "batch _ query key"]]],
) -> Iterator[None]:
    """Inside, each of these decoder layers gets this additive attention mask in place of the model's."""
    handles = [layer.register_forward_pre_hook(_with_mask(mask), with_kwargs=True) for layer, mask in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _with_mask(mask: Float[Tensor, "batch _ query key"]) -> Callable:
    return lambda module, args, kwargs: (args, {**kwargs, "attention_mask": mask})


def image_columns(batch: PackedBatch) -> Bool[Tensor, " pos"]:
    """Which positions are image tokens; equal in every row."""
    columns = torch.zeros(batch.input_ids.shape[1], dtype=torch.bool)
    columns[batch_start(batch) : batch_start(batch) + N_CELLS] = True
    return columns


def batch_start(batch: PackedBatch) -> int:
    """Number of tokens before the image; equal in every row."""
    shared: Int[Tensor, ""] = (batch.segment[0] == 0).sum()
    return int(shared) - N_CELLS
