"""Accuracy of a scenes model on fresh held-out scenes, through plain transformers.

1. Ask every question family about scenes of the held-out split; the answer is what ``generate`` writes.
2. Ask again with every position behind the image barred from reading it (a four-dimensional attention mask):
   what is left is what the question's text gives away.
3. Compare with the majority rate, the share of the most frequent right answer.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmlens.datasets.scenes import FAMILIES, Question, Scene, sample
from mmlens.pretrained.vocabulary import PROMPT

ACCURACY = "accuracy.json"


@dataclass(frozen=True, kw_only=True)
class Score:
    """How one question family was answered.

    Attributes:
        family: The question family.
        n: Questions asked, one a scene.
        right: How many answers were right.
        blocked_right: How many were right with the image barred from the text; None if not asked.
        majority: Share of the most frequent right answer.
    """

    family: str
    n: int
    right: int
    blocked_right: int | None
    majority: float

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson(self.right, self.n)


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a share ``right / n``."""
    interval = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def evaluate(
    folder: str | Path,
    *,
    n: int = 2000,
    split: str = "heldout",
    seed: int = 0,
    families: Sequence[str] = FAMILIES,
    blocked: bool = True,
    batch_size: int = 50,
) -> tuple[Score, ...]:
    """Score a folder on ``n`` scenes of every question family.

    Args:
        folder: A Hugging Face folder of a scenes model.
        n: Scenes a family.
        split: Split of the dataset.
        seed: Seed of the dataset.
        families: Question families to ask.
        blocked: Whether to ask again with the image barred from the text.
        batch_size: Questions a forward pass.

    Returns:
        One score a family, in their order.
    """
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    scores = []
    for family in families:
        asked = sample(split, n, family=family, seed=seed)
        right = blocked_right = 0
        answers: Counter[str] = Counter()
        for _ in tqdm(range(0, n, batch_size), desc=family):
            pairs = list(islice(asked, batch_size))
            wanted = [question.answer for _, question in pairs]
            answers.update(wanted)
            batch = _processed(processor, pairs)
            right += _matches(_generated(model, processor, batch), wanted)
            if blocked:
                blocked_right += _matches(_blocked(model, processor, batch), wanted)
        majority = max(answers.values(), default=0) / max(n, 1)
        left = blocked_right if blocked else None
        scores.append(Score(family=family, n=n, right=right, blocked_right=left, majority=majority))
    return tuple(scores)


def write_scores(scores: Sequence[Score], folder: Path) -> None:
    """Keep the scores in the folder, as numbers."""
    rows = [{**asdict(s), "accuracy": s.accuracy, "interval": s.interval} for s in scores]
    (folder / ACCURACY).write_text(json.dumps(rows, indent=2) + "\n")


def barred(
    input_ids: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"], image_token: int
) -> Float[Tensor, "batch 1 query key"]:
    """Additive causal mask in which no position after the image reads it; 0 or the lowest float.

    Args:
        input_ids: Token ids, one image a row.
        attention_mask: 1 = real token.
        image_token: Id of the image token.
    """
    n = input_ids.shape[1]
    image = input_ids == image_token
    after = ~image & (image.cumsum(1) > 0)
    seen: Bool[Tensor, "batch query key"] = torch.ones(n, n).tril().bool() & attention_mask.bool()[:, None]
    seen = seen & ~(after[:, :, None] & image[:, None])
    seen = seen | torch.eye(n).bool()  # padding reads itself, so that no row is empty
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None]


def _processed(processor, pairs: Sequence[tuple[Scene, Question]]):
    texts = [PROMPT.format(question=question.text) for _, question in pairs]
    return processor(
        images=[picture.image for picture, _ in pairs], text=texts, padding=True, return_tensors="pt"
    )


@torch.no_grad()
def _generated(model, processor, batch) -> Iterator[str]:
    out = model.generate(**batch, max_new_tokens=2, do_sample=False)
    texts = processor.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return (text.strip() for text in texts)


@torch.no_grad()
def _blocked(model, processor, batch) -> Iterator[str]:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    logits = model(
        input_ids=ids,
        pixel_values=batch["pixel_values"],
        attention_mask=barred(ids, mask, model.config.image_token_id),
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
    ).logits[:, -1]
    return (processor.decode([token]) for token in logits.argmax(-1).tolist())


def _matches(given: Iterator[str], wanted: Sequence[str]) -> int:
    return sum(text == answer for text, answer in zip(given, wanted, strict=True))
