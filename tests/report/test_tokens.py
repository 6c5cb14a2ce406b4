"""The token table covers every position that is not padding, once, and shows what cannot be seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlens.report.tokens import token_rows, visible

ROLES = ["system", "image", "question", "role", "final", "pad"]


def test_image_tokens_are_counted_and_short_repetitions_shown() -> None:
    tokens = ["<s>", *["<image>"] * 64, "a", "a", ":"]
    roles = ["system", *["image"] * 64, "question", "question", "final"]
    rows = token_rows(tokens, roles)
    assert [(row.span, row.role) for row in rows] == [
        ("0", "system"),
        ("1 to 64", "image"),
        ("65 to 66", "question"),
        ("67", "final"),
    ]
    assert rows[1].chips == (("<image>", 64),)
    assert rows[2].chips == (("a", 1), ("a", 1))


def test_padding_is_left_out_but_counted() -> None:
    rows = token_rows(["", "", "x"], ["pad", "pad", "final"])
    assert [(row.first, row.last, row.role) for row in rows] == [(2, 2, "final")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("\n", "↵"), ("\t", "⇥"), ("\x00", "\\x00"), (" a", " a"), ("", "(empty)"), ("é", "é")],
)
def test_what_cannot_be_seen_is_made_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "<image>"]), st.sampled_from(ROLES))))
def test_every_position_appears_once(pairs: list[tuple[str, str]]) -> None:
    tokens, roles = [a for a, _ in pairs], [b for _, b in pairs]
    rows = token_rows(tokens, roles)
    covered = [at for row in rows for at in range(row.first, row.last + 1)]
    assert covered == [at for at, role in enumerate(roles) if role != "pad"]
    for row in rows:
        assert {roles[at] for at in range(row.first, row.last + 1)} == {row.role}
        repeated = [text for text, count in row.chips for _ in range(count)]
        assert repeated == tokens[row.first : row.last + 1]
