from itertools import product

import pytest

from mmlens import pretrained
from mmlens.datasets.scenes import ANSWERS, CLASSES, FAMILIES, GROUPS, PHRASINGS, questions, scene
from mmlens.datasets.scenes.questions import TEMPLATES
from mmlens.datasets.scenes.values import PLURALS
from mmlens.pretrained.vocabulary import PROMPT, build_tokenizer, words


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_every_question_and_answer_is_known_and_survives_the_round_trip(tokenizer):
    seen = set()
    for i in range(30):
        for question in questions(scene("train", i)):
            text = PROMPT.format(question=question.text)
            ids = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "").replace("\n", "")
            seen.add(question.family)
    assert seen == set(FAMILIES)


@pytest.mark.parametrize("template", [*TEMPLATES.values(), *PHRASINGS.values()])
def test_no_question_of_any_class_or_group_has_an_unknown_word(tokenizer, template):
    for name, group in product(CLASSES, GROUPS):
        text = template.format(name=name, plural=PLURALS[name], group=group)
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids
        assert len(ids) == len(text.split()) + 1, "one token a word, and the question mark"


def test_the_shipped_tokenizer_is_the_one_that_is_built():
    from transformers import AutoTokenizer

    shipped = AutoTokenizer.from_pretrained(pretrained.path("scenes"))
    assert shipped.get_vocab() == {word: i for i, word in enumerate(words())}


@pytest.mark.parametrize("answer", sorted({word for known in ANSWERS.values() for word in known}))
def test_answers_are_one_token(tokenizer, answer):
    (token,) = tokenizer(answer, add_special_tokens=False).input_ids
    assert tokenizer.decode([token]) == answer


def test_the_prompt_is_split_into_its_words(tokenizer):
    assert tokenizer.tokenize("USER: <image>\nWhat colour is the ring? ASSISTANT:") == (
        ["USER", ":", "<image>", "What", "colour", "is", "the", "ring", "?", "ASSISTANT", ":"]
    )


def test_no_token_is_added_and_padding_is_on_the_left(tokenizer):
    batch = tokenizer(["ring", "the ring"], padding=True)
    ring, the = tokenizer.convert_tokens_to_ids(["ring", "the"])
    assert batch.input_ids == [[tokenizer.pad_token_id, ring], [the, ring]]
    assert batch.attention_mask == [[0, 1], [1, 1]]


def test_words_are_unique_and_unknown_ones_are_marked(tokenizer):
    assert len(set(words())) == len(words()) == len(tokenizer)
    assert tokenizer("zebra").input_ids == [tokenizer.unk_token_id]
