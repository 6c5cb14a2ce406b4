"""Rendering conversations and knowing where their parts are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlens.errors import InputError, MissingPixels
from mmlens.inputs.families.llava import CHAT_TEMPLATE
from mmlens.inputs.prompt import Conversation, Prompt
from mmlens.inputs.template import render
from tests.inputs.kits import CHATML

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "image", "path": "a.png"}]},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": [{"type": "image", "path": "b.png"}, {"type": "text", "text": "And this?"}]},
]


def rendered(word, conversation, template=CHAT_TEMPLATE):
    return render(conversation, word.processor, template, "<image>")


def test_llava_form(word):
    one = rendered(word, Conversation.of_prompt(Prompt(question="What is it?", image="a.png")))
    assert one.text == "USER: <image>\nWhat is it? ASSISTANT:"
    assert one.text[one.question_start : one.question_end] == "<image>\nWhat is it?"
    assert one.context_start == one.question_start == len("USER: ")
    assert one.answer_glue == " "


def test_two_images_and_none(word):
    two = rendered(word, Conversation.of_prompt(Prompt(question="Same?", image=["a.png", "b.png"])))
    assert two.text == "USER: <image>\n<image>\nSame? ASSISTANT:"
    none = rendered(word, Conversation.of_prompt(Prompt(question="Hello?")))
    assert none.text == "USER: Hello? ASSISTANT:"


def test_several_turns(word):
    one = rendered(word, Conversation.of_messages(TALK))
    assert one.text == "Be brief. USER: <image>\nLook: ASSISTANT: A cat. USER: <image>\nAnd this? ASSISTANT:"
    assert one.text[: one.context_start] == "Be brief. USER: "
    assert one.text[one.context_start : one.question_start] == "<image>\nLook: ASSISTANT: A cat. USER: "
    assert one.text[one.question_start : one.question_end] == "<image>\nAnd this?"


def test_chatml(word):
    one = rendered(word, Conversation.of_messages(TALK), CHATML)
    assert one.text[one.question_start : one.question_end] == "<image>And this?"
    assert one.text[one.question_end :] == "<|im_end|>\n<|im_start|>assistant\n"
    assert one.answer_glue == ""


@given(st.text(min_size=0, max_size=12))
def test_any_question_is_found_even_inside_the_tags(word, question):
    """A question such as 'S' also occurs in 'USER'."""
    if "<image>" in question or "\ue000" in question:
        return
    one = rendered(word, Conversation.of_prompt(Prompt(question=question, image="a.png")))
    assert one.text == f"USER: <image>\n{question} ASSISTANT:"
    assert one.text[one.question_start : one.question_end] == f"<image>\n{question}"


def test_templates_that_trim(word):
    template = CHAT_TEMPLATE.replace("part['text'] + ' '", "part['text'] | trim + '|'")
    one = rendered(word, Conversation.of_prompt(Prompt(question="  What?  ")), template)
    assert one.text == "USER: What?|ASSISTANT:"
    assert one.text[one.question_start : one.question_end] == "What?"


@pytest.mark.parametrize("glue", ["", " ", "\n"])
def test_glue_is_what_the_template_writes_before_an_answer(word, glue):
    parts = "{% for c in m['content'] %}{{ c['text'] }}{% endfor %}"
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] " + parts + " [/INST]{% else %}"
        "{{ '" + glue.replace("\n", "\\n") + "' }}" + parts + "{% endif %}{% endfor %}"
    )
    one = rendered(word, Conversation.of_prompt(Prompt(question="What?")), template)
    assert one.text == "[INST] What? [/INST]" and one.answer_glue == glue


def test_glue_is_a_space_unless_the_prompt_ends_in_one(word):
    refuses_answers = "{% if messages|length > 1 %}{{ raise_exception('one only') }}{% endif %}"
    body = "Q: {{ messages[0]['content'][0]['text'] }} A:"
    question = Conversation.of_prompt(Prompt(question="What?"))
    assert rendered(word, question, refuses_answers + body).answer_glue == " "
    assert rendered(word, question, refuses_answers + body + "{{ '\n' }}").answer_glue == ""


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no images please') }}", "refuses the conversation: no images please"),
        (
            "{% for m in messages %}{{ 'USER: ' + m['content'] }}{% endfor %}",
            "refuses the conversation: can only",
        ),
        ("{{ nobody.knows }}", "refuses the conversation: 'nobody' is undefined"),
        ("USER: <image> ASSISTANT:", r"writes texts \[\] of a conversation with 1"),
        (CHAT_TEMPLATE.replace("'text') %}", "'text') %}{{ part['text'] }}"), "drops, repeats or reorders"),
        (CHAT_TEMPLATE.replace("<image>", ""), "writes 0 image placeholders for 1 images"),
        (CHAT_TEMPLATE.replace("part['text']", "part['text'] | upper"), "changes the texts"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", r"writes texts \[\]"),
    ],
)
def test_templates_that_lose_something(word, template, words):
    conversation = Conversation.of_prompt(Prompt(question="What?", image="a.png"))
    with pytest.raises(InputError, match=words):
        rendered(word, conversation, template)


def test_placeholder_in_the_question(word):
    with pytest.raises(MissingPixels, match=r"'<image>'.*leave it out"):
        rendered(word, Conversation.of_prompt(Prompt(question="<image>\nWhat?", image="a.png")))
