"""What ``prepare`` accepts, before anything is loaded."""

import pytest

from mmlens.errors import AnswerError, InputError, RegionError
from mmlens.inputs.prompt import Prompt
from mmlens.inputs.regions import Box
from mmlens.inputs.requests import read_requests, regions_per_sample, strings_per_sample

ASK = Prompt(question="What?", answer="red", foil="blue")
TALK = [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "What?"}]}]
BOX = Box(left=0, top=0, right=1, bottom=1)


def test_prompts():
    assert [r.prompt for r in read_requests(ASK, None, None, None)] == [ASK]
    two = read_requests((ASK, ASK), None, None, None)
    assert [r.prompt for r in two] == [ASK, ASK] and two[0].conversation.turns[0].texts == ("What?",)


def test_conversations():
    (one,) = read_requests(TALK, "red", ["blue"], {"object": BOX})
    assert (one.prompt.question, one.prompt.answer, one.prompt.foil) == ("What?", "red", "blue")
    assert one.prompt.images == ("a.png",) and one.prompt.regions == {"object": (BOX,)}
    two = read_requests([TALK, TALK], ["red", "blue"], None, None)
    assert [r.prompt.answer for r in two] == ["red", "blue"] and two[0].prompt.foil is None
    text_only = read_requests([{"role": "user", "content": "What?"}], None, None, None)
    assert text_only[0].prompt.images == ()


@pytest.mark.parametrize(
    "given",
    [
        "What?",
        b"What?",
        None,
        5,
        [],
        {"question": "What?"},
        {"role": "user", "content": "x"},
        ["What?"],
        [ASK, "What?"],
        [ASK, TALK],
        [None],
    ],
)
def test_other_things_are_refused(given):
    with pytest.raises(InputError, match=r"Prompt|chat message"):
        read_requests(given, None, None, None)


@pytest.mark.parametrize("beside", [{"answers": "x"}, {"foils": "x"}, {"regions": {}}])
def test_prompts_hold_their_own_answers(beside):
    arguments = {"answers": None, "foils": None, "regions": None, **beside}
    with pytest.raises(InputError, match="belong into each Prompt"):
        read_requests([ASK], **arguments)


def test_answers_for_some_are_refused():
    without = Prompt(question="What?")
    with pytest.raises(AnswerError, match=r"samples \[1, 2\] have no answer, the others have an answer"):
        read_requests([ASK, without, without], None, None, None)
    with pytest.raises(AnswerError, match=r"samples \[1\] have no foil"):
        read_requests([ASK, Prompt(question="What?", answer="red")], None, None, None)
    with pytest.raises(AnswerError, match=r"samples \[0\] have no answer"):
        read_requests([TALK, TALK], [None, "red"], None, None)


def test_per_sample_lists():
    assert strings_per_sample(None, 2, "answers") == [None, None]
    assert strings_per_sample("a", 1, "answers") == ["a"]
    assert regions_per_sample(None, 2) == [{}, {}]
    with pytest.raises(AnswerError, match=r"1 answers for 2 sample\(s\)"):
        strings_per_sample("a", 2, "answers")
    with pytest.raises(AnswerError, match="must be a string or a list of strings"):
        strings_per_sample([3], 1, "answers")
    with pytest.raises(AnswerError, match="must be a string or a list of strings"):
        strings_per_sample(3, 1, "answers")
    for wrong in ([{}], BOX):
        with pytest.raises(RegionError, match=r"each of the 2 sample\(s\)"):
            regions_per_sample(wrong, 2)
