"""Training batches: each image once, and several questions about it packed behind it.

A packed sequence is the prompt's beginning (``USER : <image>×64``), then for each question its words, the
answer's tag and the answer. A question sees the beginning and itself only, and its positions go on from the
beginning, so each question is computed exactly as if it stood alone.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mmlens.datasets.scenes import CLASSES, COLOURS, FAMILIES, Question, Scene, questions, scene
from mmlens.datasets.scenes.values import CELL, SIZE
from mmlens.pretrained.architecture import MEAN, STD
from mmlens.pretrained.vocabulary import IMAGE

SIDE = SIZE // CELL
N_CELLS = SIDE**2
QUESTIONS_PER_IMAGE = 8
RARE = ("main", "box", "digit")
"""Families that only some scenes answer, and once: always asked where they can be."""
SHARES = {"count": 4, "hop": 3}
"""Most questions of a family about one image; two of every other."""
NEVER = 99
OPEN_FROM = (0,) * 7 + (1, 1, 2, 2, 3, 3, NEVER)
"""First decoder layer at which the text may read the image, drawn by lot for each image. Where it is not 0,
the early layers are closed, so that the model learns to read later, too; where it is NEVER, the model learns
what to say without an image: the likeliest answer."""
COVERED = 8
"""Object pixels that make a cell count as showing the object."""


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One batch; every tensor has the image first."""

    input_ids: Int[Tensor, "batch pos"]
    position_ids: Int[Tensor, "batch pos"]
    segment: Int[Tensor, "batch pos"]
    """0 the shared beginning, 1.. the questions, -1 padding."""
    pixel_values: Float[Tensor, "batch 3 height width"]
    answer_at: Int[Tensor, "question 2"]
    """(image, position) of the token that must predict each answer."""
    answer: Int[Tensor, "question"]
    family: Int[Tensor, "question"]
    cell_class: Int[Tensor, "batch cell"]
    """0 background, else 1 + index in CLASSES."""
    cell_colour: Int[Tensor, "batch cell"]
    cell_boxed: Int[Tensor, "batch cell"]
    cell_value: Int[Tensor, "batch cell"]
    """0 no digit, else 1 + which one."""
    cell_anchor: Int[Tensor, "batch cell"]
    """1 on one cell of each object: above and left of the centre of its frame."""
    index: Int[Tensor, "batch"]
    """Position of each scene in its split."""
    open_from: Int[Tensor, "batch"]
    """First decoder layer at which text may read this image."""

    def attention_mask(self, layer: int | None = None) -> Float[Tensor, "batch 1 query key"]:
        """Additive mask: causal, and no question sees another.

        Args:
            layer: Decoder layer; where it lies below ``open_from``, questions do not see the image either.
        """
        n = self.segment.shape[1]
        key, query = self.segment[:, None, :], self.segment[:, :, None]
        seen: Bool[Tensor, "batch query key"] = ((key == 0) | (key == query)) & torch.ones(n, n).tril().bool()
        if layer is not None:
            image = torch.zeros(n, dtype=torch.bool)
            first = int((self.segment[0] == 0).sum()) - N_CELLS
            image[first : first + N_CELLS] = True
            closed = (self.open_from > layer)[:, None, None] & (query > 0) & image
            seen = seen & ~closed
        return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None]


class Packer:
    """Makes the batch of any data position, from the scenes alone."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, seed: int, split: str = "train") -> None:
        """Remember the dataset's seed and split, and the tokens of what repeats."""
        self.seed, self.split = seed, split
        self._encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids
        self._known: dict[str, list[int]] = {}
        self._pad, self._eos = tokenizer.pad_token_id, tokenizer.eos_token_id
        self._start = self._ids(f"USER: {IMAGE}")[:-1] + self._ids(IMAGE) * N_CELLS

    def batch(self, first: int, size: int) -> PackedBatch:
        """The batch of scenes ``first`` to ``first + size``."""
        scenes = [scene(self.split, i, seed=self.seed) for i in range(first, first + size)]
        rows = [self._row(picture) for picture in scenes]
        width = max(len(row[0]) for row in rows)
        n = len(self._start)
        ids = np.full((size, width), self._pad)
        positions, segment = np.zeros((size, width), int), np.full((size, width), -1)
        at, answers, family = [], [], []
        for i, (row, restart, parts, asked) in enumerate(rows):
            ids[i, : len(row)], positions[i, : len(row)], segment[i, : len(row)] = row, restart, parts
            ends = np.flatnonzero(np.diff(np.append(parts, len(asked) + 1)) > 0)[1:]  # each question's answer
            at += [(i, end - 1) for end in ends]
            answers += [row[end] for end in ends]
            family += [FAMILIES.index(question.family) for question in asked]
        assert n == int((segment[0] == 0).sum())
        labels = np.stack([_cell_labels(picture) for picture in scenes])
        arrays = (ids, positions, segment, np.array(at), np.array(answers), np.array(family))
        ids_, positions_, segment_, at_, answers_, family_ = map(torch.from_numpy, arrays)
        return PackedBatch(
            input_ids=ids_,
            position_ids=positions_,
            segment=segment_,
            pixel_values=pixel_values(scenes),
            answer_at=at_,
            answer=answers_,
            family=family_,
            cell_class=torch.from_numpy(labels[:, 0]),
            cell_colour=torch.from_numpy(labels[:, 1]),
            cell_boxed=torch.from_numpy(labels[:, 2]),
            cell_value=torch.from_numpy(labels[:, 3]),
            cell_anchor=torch.from_numpy(labels[:, 4]),
            index=torch.arange(first, first + size),
            open_from=torch.tensor([self._open_from(picture) for picture in scenes]),
        )

    def _row(self, picture: Scene) -> tuple[list[int], list[int], list[int], list[Question]]:
        ids, n = list(self._start), len(self._start)
        positions, parts = list(range(n)), [0] * n
        asked = self._chosen(picture)
        for number, question in enumerate(asked, 1):
            piece = self._ids(f"{question.text} ASSISTANT:") + self._ids(question.answer)
            ids += piece
            positions += range(n, n + len(piece))
            parts += [number] * len(piece)
        return ids, positions, parts, asked

    def _open_from(self, picture: Scene) -> int:
        return random.Random(f"open/{self.seed}/{picture.index}").choice(OPEN_FROM)

    def _chosen(self, picture: Scene) -> list[Question]:
        """At most QUESTIONS_PER_IMAGE: the rare ones first, then the others in turn, at most so many each."""
        asked = list(questions(picture))
        random.Random(f"pack/{self.seed}/{picture.index}").shuffle(asked)
        turn: Counter[str] = Counter()
        ordered = []
        for question in asked:
            turn[question.family] += 1
            if turn[question.family] <= SHARES.get(question.family, 2):
                place = -1.0 if question.family in RARE else turn[question.family]
                ordered.append((place / SHARES.get(question.family, 2), len(ordered), question))
        return [question for _, _, question in sorted(ordered)[:QUESTIONS_PER_IMAGE]]

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._encode(text)
        return self._known[text]


def pixel_values(scenes: Sequence[Scene]) -> Float[Tensor, "batch 3 height width"]:
    """What the processor makes of the images (80×80 needs no resizing)."""
    pixels: UInt8[np.ndarray, "batch height width 3"] = np.stack([np.asarray(s.image) for s in scenes])
    return ((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255.0 - MEAN) / STD).contiguous()


def _cell_labels(picture: Scene) -> Int[np.ndarray, "5 cell"]:
    """Class, colour, in the box, digit value, anchor; see :class:`PackedBatch`."""
    labels = np.zeros((5, SIDE, SIDE), np.int64)
    for i, item in enumerate(picture.objects):
        covered = item.mask.reshape(SIDE, CELL, SIDE, CELL).sum((1, 3)) >= COVERED
        labels[0][covered] = 1 + CLASSES.index(item.name)
        labels[1][covered] = 1 + COLOURS.index(item.colour)
        labels[2][covered] = i == picture.boxed
        labels[3][covered] = 0 if item.value is None else 1 + int(item.value)
        x, y = (int(centre) // CELL - 1 for centre in item.centre)
        labels[4][y, x] = 1
    return labels.reshape(5, -1)
