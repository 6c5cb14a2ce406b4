"""What the scenes model is trained on: answers, and two auxiliary losses that stand in for pretraining.

1. Run the tower, project, put the image tokens into the sequence, run the decoder under the packed mask.
2. Answer loss: cross-entropy of each answer (and a light one for the end token behind it).
3. Dense loss (the stand-in for CLIP's pretraining): linear heads read class, colour and "in the box" off
   every cell of the tower.
4. Alignment loss (the stand-in for LLaVA's first stage): a projected cell that shows an object lies nearer to
   the word embedding of its class, and of its colour, than to those of the others.

Losses 3 and 4 put labels into image tokens by construction.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from mmlens.datasets.scenes import CLASSES, COLOURS
from mmlens.pretrained.architecture import D_MODEL
from mmlens.pretrained.batches import N_CELLS, PackedBatch

DENSE_WEIGHT, ALIGN_WEIGHT, END_WEIGHT = 0.5, 0.2, 0.05
SHARPNESS = 10.0
"""Factor on the cosines of the alignment loss."""


class AuxiliaryHeads(nn.Module):
    """Linear readers of the dense loss and words of the alignment loss; no part of the shipped model."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Start the readers; remember the token ids of classes and colours."""
        super().__init__()
        self.class_ids: Tensor
        self.colour_ids: Tensor
        self.classes = nn.Linear(D_MODEL, 1 + len(CLASSES))
        self.colours = nn.Linear(D_MODEL, 1 + len(COLOURS))
        self.boxed = nn.Linear(D_MODEL, 2)
        ids = tokenizer.convert_tokens_to_ids
        self.register_buffer("class_ids", torch.tensor(ids(list(CLASSES))), persistent=False)
        self.register_buffer("colour_ids", torch.tensor(ids(list(COLOURS))), persistent=False)

    def dense(self, cells: Float[Tensor, "batch cell d_model"], batch: PackedBatch) -> Float[Tensor, ""]:
        """Mean of the three readers' cross-entropies; the box only on cells that show an object."""
        shown = batch.cell_class > 0
        loss = F.cross_entropy(self.classes(cells).flatten(0, 1), batch.cell_class.flatten())
        loss = loss + F.cross_entropy(self.colours(cells).flatten(0, 1), batch.cell_colour.flatten())
        return (loss + F.cross_entropy(self.boxed(cells[shown]), batch.cell_boxed[shown])) / 3

    def align(
        self,
        projected: Float[Tensor, "batch cell d_model"],
        words: Float[Tensor, "d_vocab d_model"],
        batch: PackedBatch,
    ) -> Float[Tensor, ""]:
        """Mean of the two contrastive losses over the cells that show an object."""
        shown = batch.cell_class > 0
        cells, words = F.normalize(projected[shown], dim=-1), F.normalize(words, dim=-1)
        one = F.cross_entropy(SHARPNESS * cells @ words[self.class_ids].T, batch.cell_class[shown] - 1)
        two = F.cross_entropy(SHARPNESS * cells @ words[self.colour_ids].T, batch.cell_colour[shown] - 1)
        return (one + two) / 2


@dataclass(frozen=True, kw_only=True)
class Losses:
    """One batch's losses; ``right`` says which questions were answered rightly."""

    total: Float[Tensor, ""]
    answer: Float[Tensor, ""]
    dense: Float[Tensor, ""]
    align: Float[Tensor, ""]
    right: Bool[Tensor, "question"]


def losses(
    model: LlavaForConditionalGeneration, heads: AuxiliaryHeads, batch: PackedBatch, eos: int
) -> Losses:
    """Steps 1-4 on one batch.

    Args:
        model: The model in training.
        heads: Readers of the dense loss.
        batch: Packed questions.
        eos: Id of the end token.
    """
    inner = model.model
    cells = inner.vision_tower(batch.pixel_values).last_hidden_state[:, 1:]
    projected = inner.multi_modal_projector(cells)
    words = inner.language_model.embed_tokens
    start = words(batch.input_ids[:, : batch_start(batch)])
    rest = words(batch.input_ids[:, batch_start(batch) + N_CELLS :])
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
    dense, align = heads.dense(cells, batch), heads.align(projected, words.weight, batch)
    total = answer + END_WEIGHT * end + DENSE_WEIGHT * dense + ALIGN_WEIGHT * align
    right = logits.argmax(-1) == batch.answer
    return Losses(total=total, answer=answer, dense=dense, align=align, right=right)


def batch_start(batch: PackedBatch) -> int:
    """Number of tokens before the image; equal in every row."""
    shared: Int[Tensor, ""] = (batch.segment[0] == 0).sum()
    return int(shared) - N_CELLS
