"""Selectors: names, numbers, slices and masks as sets of positions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmlens.errors import EmptyGroup, SelectorError, ShapeError, UnknownGroup
from mmlens.inputs.prompt import DERIVED, ROLES
from mmlens.inputs.selectors import position_mask

SEQUENCE = ["pad", "pad", "system", "image", "image", "question", "image", "image", "role", "final", "answer"]
GROUPS = {"object": np.array([0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0], bool), "empty": np.zeros(11, bool)}


def chosen(selector, roles=SEQUENCE, groups=GROUPS):
    return np.flatnonzero(position_mask(selector, roles, groups, "sample 2: ")).tolist()


@pytest.mark.parametrize(
    ("selector", "positions"),
    [
        ("image", [3, 4, 6, 7]),
        ("object", [3, 6]),
        ("final", [9]),
        ("answer", [10]),
        ("generated", [10]),
        ("text", [5, 8, 9, 10]),
        ("all", [2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ("prompt", [2, 3, 4, 5, 6, 7, 8, 9]),
        (["question", "object"], [3, 5, 6]),
        (("final", "final"), [9]),
        (5, [5]),
        (-1, [10]),
        (np.int64(4), [4]),
        ([2, -1], [2, 10]),
        (range(3, 5), [3, 4]),
        (torch.tensor([7, 3]), [3, 7]),
        (torch.tensor(7), [7]),
        (slice(None), [2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (slice(-2, None), [9, 10]),
        (slice(0, 11, 4), [4, 8]),
        (np.arange(11) > 8, [9, 10]),
        (torch.arange(11) < 4, [2, 3]),
        ([True] * 4 + [False] * 7, [2, 3]),
    ],
)
def test_what_each_form_selects(selector, positions):
    assert chosen(selector) == positions


def test_text_without_an_image_is_everything():
    assert chosen("text", ["pad", "system", "question", "final"], {}) == [1, 2, 3]


@pytest.mark.parametrize(
    ("selector", "error", "words"),
    [
        ("obejct", UnknownGroup, r"sample 2: .*'obejct'; known here: pad, .*question.*text.*object, empty"),
        (["image", "nope"], UnknownGroup, "'nope'"),
        ("empty", EmptyGroup, r"sample 2: 'empty' selects no position here\. Not empty: pad, .*object"),
        ("context", EmptyGroup, "'context' selects no position"),
        ([], EmptyGroup, "selects no position"),
        (slice(4, 4), EmptyGroup, "selects no position"),
        (slice(0, 2), EmptyGroup, "selects no position"),
        (np.zeros(11, bool), EmptyGroup, "selects no position"),
        (torch.arange(11) < 2, EmptyGroup, "selects no position"),
        (11, SelectorError, "sample 2: position 11 is out of range: there are 11 columns"),
        (-12, SelectorError, "out of range"),
        ([3, 40], SelectorError, "position 40 is out of range"),
        (1, SelectorError, "position 1 is padding: it begins at column 2"),
        ([5, 0], SelectorError, "position 0 is padding"),
        (slice(0, 12), SelectorError, "reaches beyond the 11 columns"),
        (slice(-12, None), SelectorError, "reaches beyond"),
        (2.5, SelectorError, "no position selector"),
        (None, SelectorError, "no position selector"),
        ([[1, 2], [3, 4]], SelectorError, "no position selector"),
        (["image", 3], SelectorError, "no position selector"),
        (np.ones(10, bool), ShapeError, r"shape \[11\]"),
        (torch.ones(1, 11, dtype=torch.bool), ShapeError, r"shape \[11\]"),
    ],
)
def test_selectors_that_select_nothing_or_too_much(selector, error, words):
    with pytest.raises(error, match=words):
        chosen(selector)


roles = st.integers(0, 4).flatmap(
    lambda n_pad: st.lists(
        st.sampled_from([role for role in ROLES if role != "pad"]), min_size=1, max_size=20
    ).map(lambda rest: ["pad"] * n_pad + rest)
)


@given(roles)
def test_roles_partition_and_derived_names_follow_from_them(sequence):
    masks = {}
    for name in (*ROLES, *DERIVED):
        try:
            masks[name] = position_mask(name, sequence, {})
        except EmptyGroup:
            masks[name] = np.zeros(len(sequence), bool)
    assert (sum(masks[role].astype(int) for role in ROLES) == 1).all()
    np.testing.assert_array_equal(masks["all"], ~masks["pad"])
    np.testing.assert_array_equal(masks["all"], masks["prompt"] | masks["answer"])
    np.testing.assert_array_equal(masks["generated"], masks["answer"])
    assert not (masks["text"] & (masks["image"] | masks["pad"])).any()
    if "image" in sequence:
        first = sequence.index("image")
        assert not masks["text"][:first].any()
        assert (masks["text"] | masks["image"])[first:].all()


@given(roles, st.data())
def test_numbers_slices_and_masks_agree(sequence, data):
    n = len(sequence)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
    real = [i for i in range(start, stop) if sequence[i] != "pad"]
    if not real:
        return
    expected = position_mask(real, sequence, {})
    mask = np.zeros(n, bool)
    mask[start:stop] = True
    for same in (slice(start, stop), mask, torch.from_numpy(mask), [i - n for i in real]):
        np.testing.assert_array_equal(position_mask(same, sequence, {}), expected)


def test_the_answer_may_be_written_to():
    mask = position_mask("object", SEQUENCE, GROUPS)
    mask[:] = False
    assert GROUPS["object"].any()
