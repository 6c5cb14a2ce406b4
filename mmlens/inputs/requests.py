"""Sorts out what ``prepare`` was given, before anything is loaded or tokenised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmlens.errors import AnswerError, InputError, RegionError
from mmlens.inputs.prompt import Conversation, Prompt, check_regions
from mmlens.inputs.regions import Region


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One sample as it was asked for.

    Attributes:
        conversation: what was said.
        prompt: the user's own ``Prompt``, or one made from the conversation.
    """

    conversation: Conversation
    prompt: Prompt


def read_requests(prompts: Any, answers: Any, foils: Any, regions: Any) -> tuple[Request, ...]:
    """Reads prompts or chat messages.

    Args:
        prompts: a ``Prompt``, a list of them, a conversation, or a list of conversations.
        answers: expected answers of conversations, one each, or None.
        foils: their foils, or None.
        regions: their regions, or None.

    Returns:
        One request per sample.

    Raises:
        InputError: none of these forms, an empty list, or extra arguments beside ``Prompt``s, which hold
            their own.
        AnswerError: some samples have an answer (or a foil) and others have none.
    """
    items = [prompts] if isinstance(prompts, Prompt) else prompts
    if isinstance(items, (str, bytes, Mapping)) or not isinstance(items, Sequence) or not items:
        raise InputError(
            f"cannot prepare {prompts!r:.100}: expected a Prompt(question=…, image=…), a list of them, chat "
            'messages ([{"role": "user", "content": […]}]), a list of such conversations, or a '
            "processor's BatchFeature."
        )
    if all(isinstance(item, Prompt) for item in items):
        if any(argument is not None for argument in (answers, foils, regions)):
            raise InputError(
                "answers, foils and regions belong into each Prompt, not beside a list of Prompts."
            )
        requests = tuple(Request(conversation=Conversation.of_prompt(item), prompt=item) for item in items)
    else:
        requests = _read_conversations(items, answers, foils, regions)
    check_all_or_none([request.prompt.answer for request in requests], "an answer")
    check_all_or_none([request.prompt.foil for request in requests], "a foil")
    return requests


def _read_conversations(items: Sequence[Any], answers: Any, foils: Any, regions: Any) -> tuple[Request, ...]:
    if all(isinstance(item, Mapping) for item in items):
        items = [items]
    if not all(isinstance(item, Sequence) and not isinstance(item, (str, bytes)) for item in items):
        kinds = ", ".join(sorted({type(item).__name__ for item in items}))
        raise InputError(
            f"a list of {kinds} is neither a list of Prompts nor of chat messages: write Prompt(question=…, "
            "image=…)."
        )
    conversations = [Conversation.of_messages(item) for item in items]
    n = len(conversations)
    columns = zip(
        conversations,
        strings_per_sample(answers, n, "answers"),
        strings_per_sample(foils, n, "foils"),
        regions_per_sample(regions, n),
        strict=True,
    )
    return tuple(
        Request(
            conversation=conversation,
            prompt=Prompt(
                question="\n".join(conversation.turns[-1].texts),
                image=tuple(picture.source for picture in conversation.pictures) or None,
                answer=answer,
                foil=foil,
                regions=own,
            ),
        )
        for conversation, answer, foil, own in columns
    )


def strings_per_sample(given: Any, n: int, name: str) -> list[str | None]:
    """Answers or foils as one entry per sample.

    Raises:
        AnswerError: another number of them than samples, or something else than strings.
    """
    listed = [given] if isinstance(given, str) else given
    if listed is None:
        return [None] * n
    if not isinstance(listed, Sequence) or not all(item is None or isinstance(item, str) for item in listed):
        raise AnswerError(f"{name} must be a string or a list of strings; got {given!r:.100}.")
    if len(listed) != n:
        raise AnswerError(f"{len(listed)} {name} for {n} sample(s): give one each.")
    return list(listed)


def regions_per_sample(given: Any, n: int) -> list[dict[str, tuple[Region, ...]]]:
    """Regions as one checked mapping per sample.

    Raises:
        RegionError: another number of mappings than samples, or malformed regions.
    """
    listed = [given] if isinstance(given, Mapping) else given
    if listed is None:
        return [{} for _ in range(n)]
    if not isinstance(listed, Sequence) or len(listed) != n:
        raise RegionError(f"regions must be one mapping of names to regions for each of the {n} sample(s).")
    return [check_regions(item) for item in listed]


def check_all_or_none(values: Sequence[str | None], name: str) -> None:
    """Raises unless all samples have a value, or none.

    Raises:
        AnswerError: only some have; the message names those without.
    """
    missing = [index for index, value in enumerate(values) if value is None]
    if missing and len(missing) < len(values):
        raise AnswerError(
            f"samples {missing} have no {name.split()[-1]}, the others have {name}: give one to all of "
            "them, or prepare them apart."
        )
