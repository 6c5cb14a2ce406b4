"""The token table of a sample: neighbouring tokens of one role in one row, long repetitions counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

_MAX_SHOWN = 6
_SIGNS = {"\n": "↵", "\t": "⇥", "\r": "␍"}


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """Neighbouring positions of one role.

    Attributes:
        first: first position.
        last: last position.
        role: their role.
        chips: text and number of repetitions, in order.
    """

    first: int
    last: int
    role: str
    chips: tuple[tuple[str, int], ...]

    @property
    def span(self) -> str:
        """Positions, in words."""
        return str(self.first) if self.first == self.last else f"{self.first} to {self.last}"


def token_rows(tokens: Sequence[str], roles: Sequence[str]) -> list[TokenRow]:
    """Rows of the token table; padding is left out, positions still count it.

    Args:
        tokens: token strings of one sample.
        roles: role of each.
    """
    rows = []
    labelled = list(enumerate(zip(roles, tokens, strict=True)))
    for role, run in groupby(labelled, key=lambda item: item[1][0]):
        places = list(run)
        if role != "pad":
            texts = [text for _, (_, text) in places]
            rows.append(TokenRow(first=places[0][0], last=places[-1][0], role=role, chips=_chips(texts)))
    return rows


def _chips(texts: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Texts with repetitions longer than a few counted instead of repeated."""
    chips: list[tuple[str, int]] = []
    for text, run in groupby(texts):
        count = sum(1 for _ in run)
        shown = visible(text)
        chips += [(shown, count)] if count > _MAX_SHOWN else [(shown, 1)] * count
    return tuple(chips)


def visible(text: str) -> str:
    """Text with line breaks and other control characters made visible."""
    return "".join(_SIGNS.get(c, c if c.isprintable() else f"\\x{ord(c):02x}") for c in text) or "(empty)"
