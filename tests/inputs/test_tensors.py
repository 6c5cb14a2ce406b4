"""Inputs from a processor's BatchFeature."""

import pytest
import torch

from mmlens.errors import (
    AnswerError,
    ConfigError,
    InputError,
    MissingPixels,
    NonFiniteError,
    ShapeError,
    UnexpectedPixels,
)
from mmlens.inputs.families.llava import CHAT_TEMPLATE
from mmlens.inputs.prepare import prepare
from mmlens.inputs.prompt import Prompt
from mmlens.inputs.regions import Box
from tests.inputs.kits import picture


def features(kit, questions=("What is it?",), n_images=1, **options):
    texts = []
    for question in questions:
        content = [{"type": "image"}] * n_images + [{"type": "text", "text": question}]
        template = kit.processor.chat_template or CHAT_TEMPLATE
        message = [{"role": "user", "content": content}]
        texts.append(
            kit.processor.apply_chat_template(message, chat_template=template, add_generation_prompt=True)
        )
    images = [picture(28, 28, seed=i) for i in range(n_images * len(questions))]
    options = {"padding": len(questions) > 1, "padding_side": "left", "return_tensors": "pt", **options}
    return kit.processor(text=texts, images=images or None, **options)


def ask(kit, given, **options):
    return prepare(given, processor=kit.processor, cfg=kit.cfg, **options)


@pytest.mark.parametrize("n_images", [0, 1, 2])
def test_roles_agree_with_those_of_the_prompt(kit, n_images):
    """Only text around the images is labelled more coarsely, because its zones cannot be told apart."""
    given = features(kit, n_images=n_images)
    inputs = ask(kit, given)
    assert inputs.input_ids.equal(given["input_ids"])
    images = [picture(28, 28, seed=i) for i in range(n_images)]
    prompt = ask(kit, Prompt(question="What is it?", image=images or None))
    expected, found = prompt.token_maps[0], inputs.token_maps[0]
    assert found.tokens == expected.tokens
    if n_images:
        assert inputs.pixel_values.equal(given["pixel_values"])
        assert found.roles == expected.roles
    else:
        for name in ("role", "final"):
            assert [r == name for r in found.roles] == [r == name for r in expected.roles]
    for one, two in zip(found.images, expected.images, strict=True):
        assert (one.positions == two.positions).all() and (one.boxes == two.boxes).all()


def test_a_padded_batch(word):
    given = features(word, ("What is it?", "Is there a red triangle?"))
    inputs = ask(word, given)
    assert inputs.attention_mask.equal(given["attention_mask"]) and inputs.token_maps[0].n_pad == 2
    assert inputs.token_maps[0].tokens[:2] == ("", "") and inputs.token_maps[0].tokens[2] == "USER"
    assert inputs.mask("role").sum(1).tolist() == [1, 1] and inputs.mask("image").sum(1).tolist() == [16, 16]
    assert inputs.select([0]).mask("question").sum() == 4


def test_a_plain_dict_without_mask_or_processor(word):
    given = dict(features(word))
    given.pop("attention_mask")
    inputs = prepare(given, processor=None, cfg=word.cfg)
    assert inputs.attention_mask.all() and inputs.token_maps[0].tokens[0].startswith("<")
    assert inputs.token_maps[0].roles.count("role") == 0 and inputs.token_maps[0].roles[-1] == "final"
    assert len(inputs.token_maps[0].thumbnails) == 1


def test_another_prompt_form_has_no_tag(word):
    given = word.processor(text=["USER: <image>\nWhat is it?"], images=[picture()], return_tensors="pt")
    roles = ask(word, given).token_maps[0].roles
    assert roles[-1] == "final" and "role" not in roles and roles[-2] == "question"


def test_answers(kit):
    pads = kit.processor.tokenizer.pad_token is not None
    given = features(kit, ("What colour is it?", "red?")) if pads else features(kit)
    n = len(given["input_ids"])
    inputs = ask(kit, given, answers=["red"] * n, foils=["blue"] * n)
    prompt = ask(kit, Prompt(question="What is it?", image=picture(), answer="red", foil="blue"))
    assert inputs.answer_ids.tolist() == prompt.answer_ids.tolist() * n
    assert inputs.foil_ids.tolist() == prompt.foil_ids.tolist() * n


def test_a_tokenizer_without_offsets_has_no_tag_but_still_answers(word, monkeypatch):
    given = features(word)
    expected = ask(word, given, answers="red").answer_ids
    monkeypatch.setattr(type(word.processor.tokenizer), "is_fast", property(lambda self: False))
    inputs = ask(word, given, answers="red")
    assert "role" not in inputs.token_maps[0].roles and inputs.answer_ids.equal(expected)


def test_regions_are_in_processed_pixels(word):
    inputs = ask(word, features(word), regions={"object": Box(left=7, top=0, right=14, bottom=7)})
    assert inputs.token_maps[0].cells("object")[0].nonzero()[1].tolist() == [1]
    assert inputs.mask("background").sum() == 15


def test_thumbnails_undo_the_normalisation(word):
    inputs = ask(word, features(word))
    thumbnail = torch.from_numpy(inputs.token_maps[0].thumbnails[0].copy())
    original = torch.frombuffer(bytearray(picture(28, 28).tobytes()), dtype=torch.uint8).view(28, 28, 3)
    assert (thumbnail.int() - original.int()).abs().max() <= 1


def test_further_tensors_are_kept(word):
    given = dict(features(word))
    given["token_types"] = torch.zeros_like(given["input_ids"])
    assert set(ask(word, given).extra) == {"token_types"}


# ---- errors --------------------------------------------------------------------------------------------


def without(given, name):
    return {key: value for key, value in given.items() if key != name}


def test_image_tokens_without_pixels(word):
    with pytest.raises(MissingPixels, match=r"16 image tokens, but 0 image\(s\)"):
        ask(word, without(features(word), "pixel_values"))


def test_pixels_without_image_tokens(word):
    given = {**features(word, n_images=0), "pixel_values": features(word)["pixel_values"]}
    with pytest.raises(UnexpectedPixels, match="no image token that would read them"):
        ask(word, given)


@pytest.mark.parametrize(
    ("n_images", "error"), [(1, MissingPixels), (3, UnexpectedPixels), (4, UnexpectedPixels)]
)
def test_the_wrong_number_of_images(word, n_images, error):
    given = dict(features(word, ("What is it?", "red?")))
    given["pixel_values"] = given["pixel_values"][:1].repeat(n_images, 1, 1, 1)
    with pytest.raises(error, match=r"image\(s\)"):
        ask(word, given)


def test_fewer_images_than_placeholders_in_one_sample(word):
    given = dict(features(word, n_images=2))
    given["pixel_values"] = given["pixel_values"][:1]
    with pytest.raises(MissingPixels, match="32 image tokens"):
        ask(word, given)


def test_padding_on_the_right(word):
    given = features(word, ("What is it?", "Is there a red triangle?"), padding_side="right")
    with pytest.raises(InputError, match=r"on the left.*padding_side='left'"):
        ask(word, given)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda f: {**f, "input_ids": f["input_ids"].tolist()}, InputError, "return_tensors='pt'"),
        (lambda f: {**f, "input_ids": f["input_ids"][0]}, ShapeError, r"\[batch, pos\]"),
        (lambda f: {**f, "input_ids": f["input_ids"].float()}, ShapeError, "whole numbers"),
        (lambda f: {**f, "attention_mask": f["attention_mask"][:, 1:]}, ShapeError, "like input_ids"),
        (lambda f: {**f, "pixel_values": f["pixel_values"] * float("nan")}, NonFiniteError, "image 0"),
        (lambda f: {**f, "pixel_values": f["pixel_values"][..., :14]}, ShapeError, "takes 28×28"),
        (lambda f: {**f, "input_ids": f["input_ids"] - 5}, ConfigError, "not in the model's vocabulary"),
        (lambda f: {**f, "input_ids": f["input_ids"] + 900}, ConfigError, "not in the model's vocabulary"),
    ],
)
def test_tensors_that_do_not_fit(word, change, error, words):
    with pytest.raises(error, match=words):
        ask(word, change(dict(features(word))))


def test_a_padded_batch_needs_its_mask(word):
    with pytest.raises(InputError, match="does not say what is padding"):
        ask(word, without(features(word, ("What is it?", "Is there a red triangle?")), "attention_mask"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"answers": ["red", "blue"]}, r"2 answers for 1 sample"),
        ({"foils": ["red"]}, "without answers"),
        ({"answers": "giraffe"}, "sample 0: answer, 'giraffe'"),
        ({"answers": "red", "foils": "red"}, "same token"),
    ],
)
def test_bad_answers(word, options, words):
    with pytest.raises(AnswerError, match=words):
        ask(word, features(word), **options)


def test_answers_for_some(word):
    with pytest.raises(AnswerError, match=r"samples \[1\] have no answer"):
        ask(word, features(word, ("What is it?", "red?")), answers=["red", None])


def test_foils_for_some(word):
    given = features(word, ("What is it?", "red?"))
    with pytest.raises(AnswerError, match=r"samples \[0\] have no foil"):
        ask(word, given, answers=["red", "red"], foils=[None, "blue"])


def test_answers_need_a_tokenizer(word):
    with pytest.raises(AnswerError, match="give processor="):
        prepare(features(word), processor=None, cfg=word.cfg, answers="red")
