"""What a user asks: a ``Prompt``, or a conversation in Hugging Face's chat format.

Both become a ``Conversation``, the only form that the rest of the room reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmlens.errors import AnswerError, InputError, RegionError
from mmlens.inputs.images import ImageLike
from mmlens.inputs.regions import Box, Region, RegionMask

ROLES = ("pad", "system", "context", "question", "image", "role", "final", "answer")
"""Roles of token positions; every position has exactly one.

- pad: left padding.
- system: everything before the conversation's first user content: start token, system message, user tag.
- context: earlier turns of the conversation, tags included.
- question: the last user message.
- image: image tokens, wherever they are.
- role: everything between the question and the last prompt token, that is, the assistant tag.
- final: the last prompt token, whose logits give the answer.
- answer: tokens after the prompt.
"""

DERIVED = ("text", "all", "prompt", "generated")
"""Names that are computed from roles.

- text: every position after the sample's first image token that is no image token, answers included; all
  positions, if there is no image.
- all: everything but padding.
- prompt: all but padding and answer.
- generated: another name for the role answer.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """One question about one image, several, or none.

    Attributes:
        question: what the user says, without tags and image placeholders: the processor's chat template adds
            them.
        image: an ``ImageLike`` or a list of them; they stand before the question.
        answer: the expected answer; must be one token right after the prompt.
        foil: the wrong answer that the answer is compared with; one token as well.
        regions: name → box or mask, or a list of them, in pixels of the upright original. They become token
            groups. From "object" the group "background" is derived: all other image tokens.
    """

    question: str
    image: ImageLike | Sequence[ImageLike] | None = None
    answer: str | None = None
    foil: str | None = None
    regions: Mapping[str, Region | Sequence[Region]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Rejects fields of the wrong kind, foils without answer and reserved region names."""
        if not isinstance(self.question, str):
            raise InputError(f"a question must be a string, not {type(self.question).__name__}.")
        for name in ("answer", "foil"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise AnswerError(f"{name} must be a string or None, not {type(value).__name__}.")
        if self.foil is not None and self.answer is None:
            raise AnswerError(
                f"foil {self.foil!r} came without an answer to compare it with: give answer= too."
            )
        object.__setattr__(self, "regions", check_regions(self.regions))

    @property
    def images(self) -> tuple[ImageLike, ...]:
        """The images, in order; empty if there is none."""
        if self.image is None:
            return ()
        if isinstance(self.image, (Image.Image, str, bytes, np.ndarray, torch.Tensor)):
            return (self.image,)
        return tuple(self.image) if isinstance(self.image, Sequence) else (self.image,)


def check_regions(regions: Any) -> dict[str, tuple[Region, ...]]:
    """Regions by name, each as a tuple.

    Raises:
        RegionError: not a mapping of names to regions, or a name that is a role or a derived name.
    """
    if not isinstance(regions, Mapping):
        raise RegionError(
            f"regions must map names to boxes or masks, as in {{'object': Box(...)}}; got {regions!r}."
        )
    checked = {}
    for name, given in regions.items():
        if not isinstance(name, str) or not name or name in (*ROLES, *DERIVED) or name.startswith("image_"):
            raise RegionError(
                f"a region cannot be called {name!r}: the name is empty or belongs to a role "
                f"({', '.join((*ROLES, *DERIVED))}, image_…)."
            )
        members = (given,) if isinstance(given, (Box, RegionMask)) else given
        listed = isinstance(members, Sequence) and len(members) > 0
        if not listed or not all(isinstance(member, (Box, RegionMask)) for member in members):
            raise RegionError(f"region {name!r} must be a Box, a RegionMask or a non-empty list of them.")
        checked[name] = tuple(members)
    return checked


# ---- conversations ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Picture:
    """An image at its place in a conversation."""

    source: Any


@dataclass(frozen=True, eq=False)
class Turn:
    """One message: who speaks, and texts and pictures in order."""

    speaker: str
    parts: tuple[str | Picture, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the message, in order."""
        return tuple(part for part in self.parts if isinstance(part, str))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The pictures of the message, in order."""
        return tuple(part for part in self.parts if isinstance(part, Picture))


@dataclass(frozen=True, eq=False)
class Conversation:
    """Messages up to and including the user message that the model is to answer."""

    turns: tuple[Turn, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures, in order."""
        return tuple(picture for turn in self.turns for picture in turn.pictures)

    @classmethod
    def of_prompt(cls, prompt: Prompt) -> "Conversation":
        """One user message: the images, then the question."""
        pictures = tuple(Picture(image) for image in prompt.images)
        return cls((Turn("user", (*pictures, prompt.question)),))

    @classmethod
    def of_messages(cls, messages: Any) -> "Conversation":
        """Reads Hugging Face chat messages.

        Args:
            messages: ``[{"role": "user", "content": [{"type": "image", "image": …}, {"type": "text", "text":
                …}]}]``; ``content`` may be a plain string; an image may also be under "path" or "url" (a
                file: nothing is downloaded).

        Raises:
            InputError: a message of another form, or a conversation that does not end with the user.
        """
        turns = tuple(_turn(message, index) for index, message in enumerate(messages))
        if not turns or turns[-1].speaker != "user":
            last = turns[-1].speaker if turns else "nothing"
            raise InputError(
                f"a conversation must end with the user message to be answered; it ends with {last}. Give "
                "the expected answer as answers=, not as an assistant message."
            )
        if not turns[-1].parts:
            raise InputError("the last user message is empty: give it a text or an image part.")
        return cls(turns)


def _turn(message: Any, index: int) -> Turn:
    where = f"chat message {index}"
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise InputError(f'{where} must be {{"role": …, "content": …}}; got {message!r:.200}.')
    if message["role"] not in ("system", "user", "assistant"):
        raise InputError(f"{where} has role {message['role']!r}; known: system, user, assistant.")
    content = message["content"]
    if isinstance(content, str):
        return Turn(message["role"], (content,))
    if not isinstance(content, Sequence):
        raise InputError(
            f"{where}: content must be a string or a list of parts, not {type(content).__name__}."
        )
    return Turn(message["role"], tuple(_part(part, where) for part in content))


def _part(part: Any, where: str) -> str | Picture:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind == "image":
        sources = [part[key] for key in ("image", "path", "url") if part.get(key) is not None]
        if len(sources) == 1:
            return Picture(sources[0])
        raise InputError(
            f'{where}: an image part needs exactly one of "image", "path" or "url"; got keys {sorted(part)}. '
            "Images are given inside the messages, not beside them."
        )
    raise InputError(
        f'{where}: a part must be {{"type": "text", "text": …}} or {{"type": "image", "image": …}}; '
        f"got {part!r:.200}."
    )
