"""Prompts and chat messages."""

import numpy as np
import pytest
import torch

from mmlens.errors import AnswerError, InputError, RegionError
from mmlens.inputs.prompt import Conversation, Picture, Prompt
from mmlens.inputs.regions import Box, RegionMask
from tests.inputs.kits import picture, unchecked

BOX = Box(left=0, top=0, right=5, bottom=5)


@pytest.mark.parametrize(
    "image", ["a.png", b"bytes", np.zeros((3, 3), np.uint8), torch.zeros(3, 3, dtype=torch.uint8)]
)
def test_one_image_is_one_image(image):
    assert Prompt(question="?", image=image).images == (image,)
    assert Prompt(question="?", image=[image, image]).images == (image, image)


def test_pil_path_and_none(tmp_path):
    image = picture()
    assert Prompt(question="?", image=image).images == (image,)
    assert Prompt(question="?", image=tmp_path / "x.png").images == (tmp_path / "x.png",)
    assert Prompt(question="?").images == ()


def test_regions_become_tuples():
    mask = RegionMask(mask=np.ones((3, 3), bool))
    prompt = Prompt(question="?", regions={"object": BOX, "sign": [BOX, mask]})
    assert prompt.regions == {"object": (BOX,), "sign": (BOX, mask)}


@pytest.mark.parametrize(
    ("regions", "words"),
    [
        ({"image": BOX}, "cannot be called 'image'.*role"),
        ({"text": BOX}, "cannot be called 'text'"),
        ({"context": BOX}, "cannot be called"),
        ({"image_0": BOX}, "cannot be called"),
        ({"": BOX}, "empty"),
        ({"object": []}, "non-empty list"),
        ({"object": (0, 0, 5, 5)}, "must be a Box"),
        ({"object": None}, "must be a Box"),
        ([BOX], "must map names"),
    ],
)
def test_regions_that_are_none(regions, words):
    with pytest.raises(RegionError, match=words):
        unchecked(Prompt, question="?", regions=regions)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"question": None}, InputError, "must be a string, not NoneType"),
        ({"question": "?", "answer": 3}, AnswerError, "answer must be a string"),
        ({"question": "?", "answer": "a", "foil": 3}, AnswerError, "foil must be a string"),
        ({"question": "?", "foil": "cat"}, AnswerError, "foil 'cat' came without an answer"),
    ],
)
def test_prompts_that_are_none(fields, error, words):
    with pytest.raises(error, match=words):
        unchecked(Prompt, **fields)


def test_prompt_as_conversation_puts_images_first():
    (turn,) = Conversation.of_prompt(Prompt(question="What?", image=["a.png", "b.png"])).turns
    assert turn.speaker == "user" and turn.texts == ("What?",)
    assert [picture.source for picture in turn.pictures] == ["a.png", "b.png"]
    assert isinstance(turn.parts[0], Picture) and turn.parts[2] == "What?"


def test_chat_messages_keep_order():
    conversation = Conversation.of_messages(
        [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "This:"}, {"type": "image", "path": "a.png"}],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
            {
                "role": "user",
                "content": [{"type": "image", "url": "b.png"}, {"type": "text", "text": "And this?"}],
            },
        ]
    )
    assert [turn.speaker for turn in conversation.turns] == ["system", "user", "assistant", "user"]
    assert conversation.turns[1].texts == ("This:",) and isinstance(conversation.turns[1].parts[1], Picture)
    assert [picture.source for picture in conversation.pictures] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "must end with the user"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "ends with assistant.*answers=",
        ),
        ([{"role": "user", "content": []}], "last user message is empty"),
        ([{"role": "tool", "content": "x"}], "message 0 has role 'tool'"),
        ([{"role": "user"}], "message 0 must be"),
        (["hello"], "message 0 must be"),
        ([{"role": "user", "content": 5}], "not int"),
        ([{"role": "user", "content": [{"type": "video"}]}], "a part must be"),
        ([{"role": "user", "content": ["hello"]}], "a part must be"),
        ([{"role": "user", "content": [{"type": "text"}]}], "a part must be"),
        ([{"role": "user", "content": [{"type": "image"}]}], "exactly one of"),
        ([{"role": "user", "content": [{"type": "image", "path": "a", "url": "b"}]}], "exactly one of"),
    ],
)
def test_messages_that_are_none(messages, words):
    with pytest.raises(InputError, match=words):
        Conversation.of_messages(messages)
