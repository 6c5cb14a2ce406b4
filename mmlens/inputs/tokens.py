"""From rendered text to token ids, with a role for every token.

The processor tokenises and expands image placeholders; image tokens are found by their id. The tokenizer
alone then tokenises the unexpanded text to learn which characters each token covers, and both results must
agree on every token that is no image token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from mmlens.config import ModelConfig
from mmlens.errors import ConfigError, InputError
from mmlens.inputs.template import Rendered


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One prompt as the processor encodes it.

    Attributes:
        ids: token ids, image tokens expanded, no padding.
        roles: role of each token.
        tensors: the processor's other outputs: pixel values and whatever the family adds.
    """

    ids: tuple[int, ...]
    roles: tuple[str, ...]
    tensors: dict[str, Tensor]


def encode(processor: Any, rendered: Rendered, images: Sequence[Image.Image], image_token_id: int) -> Encoded:
    """Runs the processor on one prompt and labels its tokens.

    Args:
        processor: a Hugging Face processor with a fast tokenizer; it is not changed.
        rendered: the prompt's text and zones.
        images: RGB images, in the order of their placeholders.
        image_token_id: id of image tokens.

    Returns:
        Ids, roles and tensors.

    Raises:
        InputError: the tokenizer gives no character offsets, or disagrees with the processor.
    """
    special = _adds_special_tokens(processor.tokenizer, rendered.text)
    output = processor(
        images=list(images) or None,
        text=[rendered.text],
        text_kwargs={"padding": False, "truncation": False, "add_special_tokens": special},
        images_kwargs={"return_tensors": "pt"},
    )
    ids = tuple(int(token) for token in output["input_ids"][0])
    roles = _roles(processor.tokenizer, rendered, ids, image_token_id, special)
    tensors = {}
    for name, value in output.items():
        if name not in ("input_ids", "attention_mask"):
            tensors[name] = value if isinstance(value, Tensor) else torch.as_tensor(value)
    return Encoded(ids=ids, roles=roles, tensors=tensors)


def check_image_token(processor: Any, image_token_id: int) -> str:
    """The placeholder of an image in the text, after checking that processor and model mean the same token.

    Raises:
        ConfigError: the processor expands another token than the model replaces.
    """
    placeholder = processor.tokenizer.convert_ids_to_tokens(image_token_id)
    of_processor = getattr(processor, "image_token_id", image_token_id)
    if of_processor != image_token_id or placeholder is None:
        raise ConfigError(
            f"the processor's image token is {of_processor}, the model replaces token {image_token_id} "
            f"({placeholder!r}): they do not belong together. Load both from the same checkpoint."
        )
    return getattr(processor, "image_token", placeholder)


def check_vocabulary(ids: Int[Tensor, "*tokens"], cfg: ModelConfig, where: str = "") -> None:
    """Raises if the model has no embedding for a token (image tokens need none).

    Raises:
        ConfigError: a token id is negative or beyond the vocabulary.
    """
    wrong = ids[((ids < 0) | (ids >= cfg.d_vocab)) & (ids != cfg.image_token_id)]
    if len(wrong):
        raise ConfigError(
            f"{where}token {int(wrong[0])} is not in the model's vocabulary of {cfg.d_vocab}: processor and model "
            "do not belong together."
        )


def token_strings(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Readable text of each token, with the leading space that belongs to it.

    Args:
        tokenizer: a Hugging Face tokenizer, or None: then each token reads as its number.
        ids: token ids.

    Returns:
        One string per id; pieces that are no text on their own (single bytes, say) keep the vocabulary's
        spelling.
    """
    if tokenizer is None:
        return tuple(f"<{token}>" for token in ids)
    known: dict[int, str] = {}
    for token in set(ids):
        piece = tokenizer.convert_ids_to_tokens(int(token))
        if piece is None:
            known[token] = f"<{token}>"
            continue
        text = tokenizer.decode([int(token)], clean_up_tokenization_spaces=False)
        if not text.strip(" ") or "\ufffd" in text:
            text = piece.replace("\u2581", " ").replace("\u0120", " ")
        elif piece.startswith(("\u2581", "\u0120")) and not text.startswith(" "):
            text = " " + text
        known[token] = text
    return tuple(known[token] for token in ids)


def _adds_special_tokens(tokenizer: Any, text: str) -> bool:
    # as transformers does: a template that writes the start token itself must not get a second one
    return tokenizer.bos_token is None or not text.startswith(tokenizer.bos_token)


def _roles(
    tokenizer: Any, rendered: Rendered, ids: tuple[int, ...], image_token_id: int, special: bool
) -> tuple[str, ...]:
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"{type(tokenizer).__name__} gives no character offsets, which labelling tokens needs: load the "
            "fast tokenizer (AutoTokenizer), or give a BatchFeature."
        )
    alone = tokenizer(
        rendered.text,
        add_special_tokens=special,
        return_offsets_mapping=True,
        padding=False,
        truncation=False,
    )
    pairs = zip(alone["input_ids"], alone["offset_mapping"], strict=True)
    literal = [(token, span) for token, span in pairs if token != image_token_id]
    if [token for token, _ in literal] != [token for token in ids if token != image_token_id]:
        raise InputError(
            f"processor and tokenizer disagree on the tokens of {rendered.text[:80]!r}: the processor "
            "rewrites the text. Load both from the same checkpoint."
        )
    zones = _zones(rendered, [span for _, span in literal])
    labels = iter(zones)
    roles = ["image" if token == image_token_id else next(labels) for token in ids]
    roles[-1] = "final" if roles[-1] != "image" else "image"
    return tuple(roles)


def _zones(rendered: Rendered, spans: list[tuple[int, int]]) -> list[str]:
    zones = ["system"]
    for start, end in spans:
        # a token belongs where its last character is: pieces carry the space before a word, not after it
        if end <= start:
            zones.append(zones[-1])  # a special token that stands for no character
        elif end <= rendered.context_start:
            zones.append("system")
        elif end <= rendered.question_start:
            zones.append("context")
        elif end <= rendered.question_end:
            zones.append("question")
        else:
            zones.append("role")
    return zones[1:]
