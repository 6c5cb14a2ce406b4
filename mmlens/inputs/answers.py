"""Which single token an answer is, right after a prompt.

The answer is tokenised in context, behind the prompt, because the same word is another token at the start of
a text than after a space: ``red`` and ``▁red`` in SentencePiece, ``red`` and ``Ġred`` in byte-level BPE.
"""

from typing import Any

from mmlens.errors import AnswerError


def answer_id(tokenizer: Any, prompt: str, glue: str, answer: str, *, shown: str, d_vocab: int) -> int:
    """The token that begins, and is, an answer.

    Args:
        tokenizer: a Hugging Face tokenizer.
        prompt: the text before the answer.
        glue: whitespace between the two, as the chat template writes it.
        answer: the word; spaces around it are ignored.
        shown: how messages call it, as "the answer of sample 0".
        d_vocab: size of the model's vocabulary.

    Returns:
        Its token id.

    Raises:
        AnswerError: nothing, several tokens, a token unknown to the vocabulary, or one that melts into the
            prompt.
    """
    word = answer.strip()
    before = _ids(tokenizer, prompt)
    after = _ids(tokenizer, prompt + glue + word)
    if after[: len(before)] != before:
        raise AnswerError(
            f"{shown}, {answer!r}, changes the tokens of the prompt itself: {_pieces(tokenizer, before)} "
            f"becomes {_pieces(tokenizer, after)}. Choose another answer, or a prompt that ends in a "
            "complete token."
        )
    new = after[len(before) :]
    if len(new) != 1:
        raise AnswerError(_not_one(tokenizer, prompt + glue, before, new, answer, shown))
    if new[0] == tokenizer.unk_token_id:
        raise AnswerError(
            f"{shown}, {answer!r}, is not in the tokenizer's vocabulary (it becomes "
            f"{tokenizer.unk_token!r}): choose a word that the model can say."
        )
    if new[0] >= d_vocab:
        raise AnswerError(f"{shown}, {answer!r}, is token {new[0]}, but the model has only {d_vocab} logits.")
    return new[0]


def _not_one(tokenizer: Any, context: str, before: list[int], new: list[int], answer: str, shown: str) -> str:
    if not new:
        return f"{shown}, {answer!r}, gives no token at all: give a word."
    pieces = tokenizer.convert_ids_to_tokens(new)
    start = tokenizer.decode(new[:1]).strip()
    begins = start and start != answer.strip() and _ids(tokenizer, context + start) == [*before, new[0]]
    hint = f", or its beginning, {start!r}, if that tells answer and foil apart" if begins else ""
    return (
        f"{shown}, {answer!r}, is {len(new)} tokens after this prompt, {pieces}; metrics read one logit. "
        f"Choose a word that is one token{hint}."
    )


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, padding=False, truncation=False)["input_ids"])


def _pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    return list(tokenizer.convert_ids_to_tokens(ids[-4:]))


def check_differ(
    answer: int | None, foil: int | None, answer_text: str | None, foil_text: str | None, where: str
) -> None:
    """Raises if answer and foil are the same token: their logit difference would always be 0.

    Raises:
        AnswerError: they are the same.
    """
    if answer is not None and answer == foil:
        raise AnswerError(
            f"{where}answer {answer_text!r} and foil {foil_text!r} are the same token, so their logits "
            "never differ: choose another foil."
        )
