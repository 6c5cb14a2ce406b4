"""Prompts of what the command line gives: pictures and a question about each."""

from typing import TYPE_CHECKING, Any

from mmlens.errors import InputError

if TYPE_CHECKING:
    from mmlens.inputs import Inputs
    from mmlens.model import HookedVLM


def prompts_about(
    model: "HookedVLM", pictures: list[Any], question: str, answer: str | None, foil: str | None
) -> "Inputs":
    """Prompts about each picture; without a given answer, each is asked for the model's own."""
    from dataclasses import replace

    import torch

    from mmlens.inputs import Prompt

    if answer is None and foil is not None:
        raise InputError("--foil needs --answer: a difference of logits has two sides.")
    inputs = model.prepare(
        [Prompt(question=question, image=one, answer=answer, foil=foil) for one in pictures]
    )
    if answer is not None:
        return inputs
    with torch.no_grad():
        return replace(inputs, answer_ids=model(inputs, logits_pos="final")[:, -1].argmax(-1))


def with_own_answers(model: "HookedVLM", prompts: list[Any], *, progress: bool) -> list[Any]:
    """The same prompts; one that has no answer gets the model's own, where that is a word.

    What cannot be prepared stays as it is, for whoever runs it to say so.
    """
    from dataclasses import replace

    from tqdm import tqdm

    from mmlens.inputs import Prompt

    open_ones = [isinstance(prompt, Prompt) and prompt.answer is None for prompt in prompts]
    if not any(open_ones):
        return prompts
    bar = tqdm(prompts, desc="answers", unit="image", disable=not progress)
    return [
        replace(prompt, answer=_own_answer(model, prompt)) if asks else prompt
        for prompt, asks in zip(bar, open_ones, strict=True)
    ]


def _own_answer(model: "HookedVLM", prompt: Any) -> str | None:
    """The token that the model says, as text; None if the text is not that one token again."""
    from dataclasses import replace

    import torch

    try:
        inputs = model.prepare([prompt])
        with torch.no_grad():
            said = model(inputs, logits_pos="final")[:, -1].argmax(-1)
        word = model.tokenizer.decode(said.tolist()).strip()
        again = model.prepare([replace(prompt, answer=word)]).answer_ids
    except InputError:
        return None
    return word if again is not None and again.tolist() == said.tolist() else None
