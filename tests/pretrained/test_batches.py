from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare
from sklearn.datasets import load_digits

from mmlens.datasets.scenes import CLASSES, COLOURS, FAMILIES, questions, scene
from mmlens.pretrained.architecture import build_processor
from mmlens.pretrained.batches import (
    NEVER,
    OPEN_FROM,
    QUESTIONS_PER_IMAGE,
    RARE,
    SHARES,
    Packer,
    pixel_values,
)
from mmlens.pretrained.vocabulary import IMAGE, PROMPT, build_tokenizer

N = 300


@pytest.fixture(scope="module")
def packer():
    return Packer(build_tokenizer(), seed=0)


@pytest.fixture(scope="module")
def many(packer):
    return packer.batch(0, N)


@pytest.fixture(scope="module")
def scenes():
    return [scene("train", i) for i in range(N)]


def of_image(batch):
    """Names of the tensors with one row an image, the length of the longest row apart."""
    return [
        f.name for f in fields(batch) if f.name.startswith("cell") or f.name in ("pixel_values", "open_from")
    ]


def test_batches_follow_from_their_position_alone(packer):
    one, again = packer.batch(8, 4), Packer(build_tokenizer(), seed=0).batch(8, 4)
    assert all(torch.equal(getattr(one, f.name), getattr(again, f.name)) for f in fields(one))
    tail = packer.batch(10, 2)
    assert len(of_image(one)) == 7
    assert all(torch.equal(getattr(tail, name), getattr(one, name)[2:]) for name in of_image(one))


def test_every_packed_question_is_the_prompt_the_processor_makes(packer):
    batch, processor = packer.batch(0, 6), build_processor()
    blank = Image.new("RGB", (80, 80))
    known = {q.text: q for i in range(6) for q in questions(scene("train", i))}
    texts = [PROMPT.format(question=text) for text in known]
    prompts = {tuple(processor(images=blank, text=text)["input_ids"][0]) for text in texts}
    for (image, position), answer in zip(batch.answer_at.tolist(), batch.answer.tolist(), strict=True):
        number = batch.segment[image, position]
        mine = (batch.segment[image] == 0) | (batch.segment[image] == number)
        ids = batch.input_ids[image, mine].tolist()
        assert tuple(ids[:-1]) in prompts and ids[-1] == answer
        assert batch.position_ids[image, mine].tolist() == list(range(len(ids)))


def test_every_answer_is_the_scenes_own(packer, many, scenes):
    decode = build_tokenizer().decode
    for row in range(0, N, 30):
        mine = many.answer_at[:, 0] == row
        told = {(question.family, question.answer) for question in questions(scenes[row])}
        found = zip(many.family[mine].tolist(), many.answer[mine].tolist(), strict=True)
        assert {(FAMILIES[family], decode([answer])) for family, answer in found} <= told


def test_an_image_has_at_most_eight_questions_and_the_rare_ones_first(many, scenes):
    asked = [Counter() for _ in range(N)]
    for (image, _), family in zip(many.answer_at.tolist(), many.family.tolist(), strict=True):
        asked[image][FAMILIES[family]] += 1
    for picture, found in zip(scenes, asked, strict=True):
        could = Counter(question.family for question in questions(picture))
        wanted = {family: min(number, SHARES.get(family, 2)) for family, number in could.items()}
        assert found.total() == min(QUESTIONS_PER_IMAGE, sum(wanted.values()))
        assert all(number <= wanted[family] for family, number in found.items())
        assert all(found[family] == wanted[family] for family in RARE if family in could)
    assert set(sum(asked, Counter())) == set(FAMILIES)
    assert max(found.total() for found in asked) == QUESTIONS_PER_IMAGE == 8


def test_the_mask_hides_other_questions_and_the_future(packer):
    batch = packer.batch(0, 3)
    seen = batch.attention_mask()[:, 0] == 0
    n = seen.shape[-1]
    assert not seen[:, torch.ones(n, n).triu(1).bool()].any()
    part = batch.segment
    foreign = (part[:, :, None] > 0) & (part[:, None] > 0) & (part[:, :, None] != part[:, None])
    assert foreign.any() and not (seen & foreign).any()
    assert seen.any(-1).all(), "a row that sees nothing would give NaN"


@pytest.mark.parametrize("layer", range(5))
def test_closed_layers_hide_the_image_from_questions_and_nothing_else(packer, layer):
    batch = replace(packer.batch(0, 5), open_from=torch.tensor([0, 1, 3, 2, NEVER]))
    closed = torch.tensor([False, layer < 1, layer < 3, layer < 2, True])
    image = batch.input_ids == build_tokenizer().convert_tokens_to_ids(IMAGE)
    plain, found = (batch.attention_mask(at)[:, 0] == 0 for at in (None, layer))
    reads = plain & (batch.segment > 0)[:, :, None] & image[:, None]
    assert reads.flatten(1).any(1).all(), "where nothing is closed, questions read the image"
    assert torch.equal(plain & ~found, reads & closed[:, None, None])
    assert not (found & ~plain).any() and found.any(-1).all()


def test_how_deep_images_are_closed_is_drawn_by_lot(packer, many):
    found = Counter(many.open_from.tolist())
    known = sorted(set(OPEN_FROM))
    wanted = [N * OPEN_FROM.count(value) / len(OPEN_FROM) for value in known]
    assert chisquare([found[value] for value in known], wanted).pvalue > 1e-3 and found.total() == N
    assert known == [0, 1, 2, 3, NEVER] and NEVER > 6, "never is beyond every layer"
    other = Packer(build_tokenizer(), seed=1).batch(0, 40)
    assert not torch.equal(other.open_from, many.open_from[:40])


def test_pixels_are_what_the_processor_makes():
    scenes = [scene("train", i) for i in range(3)]
    wanted = build_processor().image_processor([s.image for s in scenes], return_tensors="pt")["pixel_values"]
    assert torch.allclose(pixel_values(scenes), wanted, atol=1e-6)


def cells(mask):
    """How many pixels of each cell are in a mask."""
    return np.array(
        [[mask[y : y + 10, x : x + 10].sum() for x in range(0, 80, 10)] for y in range(0, 80, 10)]
    )


def test_cell_labels_say_what_each_cell_shows(many, scenes):
    values = load_digits().target
    for row, picture in enumerate(scenes[:60]):
        wanted = np.zeros((4, 8, 8), int)
        for i, item in enumerate(picture.objects):
            value = 0 if item.sample is None else 1 + values[item.sample]
            label = (1 + CLASSES.index(item.name), 1 + COLOURS.index(item.colour), i == picture.boxed, value)
            wanted[:, cells(item.mask) >= 8] = np.array(label)[:, None]
        names = ("cell_class", "cell_colour", "cell_boxed", "cell_value")
        for name, label in zip(names, wanted, strict=True):
            assert getattr(many, name)[row].tolist() == label.flatten().tolist(), name
    assert (many.cell_value > 0).any() and (many.cell_boxed > 0).any()
    assert torch.equal(many.cell_value > 0, many.cell_class == 1 + CLASSES.index("digit"))


def test_each_object_has_one_anchor_up_and_left_of_the_centre_of_its_frame(many, scenes):
    for row, picture in enumerate(scenes):
        anchors = many.cell_anchor[row].view(8, 8)
        assert int(anchors.sum()) == len(picture.objects) and int(anchors.max()) == 1
        for item in picture.objects:
            left, top, right, bottom = (edge // 10 for edge in item.frame)
            inside = anchors[top:bottom, left:right]
            half = (right - left) // 2 - 1
            assert int(inside.sum()) == 1 == int(inside[half, half])
