"""Answers as single tokens, in context."""

import pytest
import torch

from mmlens.errors import AnswerError
from mmlens.inputs.answers import answer_id, check_differ

PROMPTS = {"word": "USER: <image>\nWhat? ASSISTANT:", "metaspace": "USER: <image>\nWhat? ASSISTANT:"}
PROMPTS["bytelevel"] = "<|im_start|>user\n<image>What?<|im_end|>\n<|im_start|>assistant\n"
GLUE = {"word": " ", "metaspace": " ", "bytelevel": ""}


def token_of(kits, name, answer, prompt=None, d_vocab=10_000):
    tokenizer = kits[name].processor.tokenizer
    prompt = PROMPTS[name] if prompt is None else prompt
    return answer_id(tokenizer, prompt, GLUE[name], answer, shown="the answer of sample 3", d_vocab=d_vocab)


@pytest.mark.parametrize(("name", "piece"), [("word", "red"), ("metaspace", "▁red"), ("bytelevel", "red")])
def test_the_piece_that_follows_the_prompt(kits, name, piece):
    tokenizer = kits[name].processor.tokenizer
    for answer in ("red", " red", "red "):
        assert tokenizer.convert_ids_to_tokens(token_of(kits, name, answer)) == piece
    whole = tokenizer(PROMPTS[name] + GLUE[name] + "red", add_special_tokens=False)["input_ids"]
    assert whole[-1] == token_of(kits, name, "red")


def test_space_belongs_to_the_answer_after_a_colon_but_not_after_a_newline(kits):
    tokenizer = kits["bytelevel"].processor.tokenizer
    after_colon = answer_id(tokenizer, "ASSISTANT:", " ", "red", shown="x", d_vocab=10_000)
    assert tokenizer.convert_ids_to_tokens(after_colon) == "Ġred"


def test_several_tokens(kits):
    with pytest.raises(
        AnswerError, match=r"the answer of sample 3, 'red circle', is 2 tokens.*'▁red', '▁circle'"
    ):
        token_of(kits, "metaspace", "red circle")
    with pytest.raises(AnswerError, match=r"its beginning, 'red', if that tells"):
        token_of(kits, "metaspace", "red circle")


def test_no_hint_that_would_not_work(kits):
    """The first piece of 'zq' is a bare space: no word to offer."""
    with pytest.raises(AnswerError, match=r"Choose a word that is one token\.$"):
        token_of(kits, "metaspace", "zq")


def test_unknown_word(kits):
    with pytest.raises(AnswerError, match=r"'giraffe', is not in the tokenizer's vocabulary.*<unk>"):
        token_of(kits, "word", "giraffe")


@pytest.mark.parametrize("answer", ["", "   "])
def test_nothing(kits, answer):
    with pytest.raises(AnswerError, match="no token at all"):
        token_of(kits, "word", answer)


def test_answer_that_melts_into_the_prompt(kits):
    """'re' + 'd' is the one token 'red'."""
    with pytest.raises(AnswerError, match="changes the tokens of the prompt itself"):
        token_of(kits, "bytelevel", "d", prompt="re")


def test_beyond_the_models_vocabulary(kits):
    with pytest.raises(AnswerError, match="only 3 logits"):
        token_of(kits, "word", "red", d_vocab=3)


def test_answer_and_foil_must_differ():
    check_differ(1, 2, "a", "b", "")
    check_differ(1, None, "a", None, "")
    check_differ(None, None, None, None, "")
    with pytest.raises(AnswerError, match="sample 4: answer 'red' and foil ' red' are the same token"):
        check_differ(7, 7, "red", " red", "sample 4: ")


def test_alone_the_word_is_another_token(kits):
    """The reason for tokenising in context: without a space before it, 'red' is not '▁red'."""
    tokenizer = kits["metaspace"].processor.tokenizer
    glued = tokenizer("ASSISTANT:red", add_special_tokens=False)["input_ids"]
    assert torch.tensor(glued[-1]).item() != token_of(kits, "metaspace", "red")
