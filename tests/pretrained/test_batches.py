import pytest
import torch
from PIL import Image

from mmlens.datasets.scenes import FAMILIES, questions, scene
from mmlens.pretrained.architecture import build_processor
from mmlens.pretrained.batches import Packer, pixel_values
from mmlens.pretrained.vocabulary import PROMPT, build_tokenizer


@pytest.fixture(scope="module")
def packer():
    return Packer(build_tokenizer(), seed=0)


def test_batches_follow_from_their_position_alone(packer):
    one, again = packer.batch(8, 4), Packer(build_tokenizer(), seed=0).batch(8, 4)
    assert torch.equal(one.input_ids, again.input_ids) and torch.equal(one.pixel_values, again.pixel_values)
    assert torch.equal(packer.batch(10, 2).pixel_values, one.pixel_values[2:])


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


def test_the_mask_hides_other_questions_and_the_future(packer):
    batch = packer.batch(0, 3)
    seen = batch.attention_mask()[:, 0] == 0
    n = seen.shape[-1]
    assert not seen[:, torch.ones(n, n).triu(1).bool()].any()
    part = batch.segment
    foreign = (part[:, :, None] > 0) & (part[:, None] > 0) & (part[:, :, None] != part[:, None])
    assert foreign.any() and not (seen & foreign).any()
    assert seen.any(-1).all(), "a row that sees nothing would give NaN"


def test_pixels_are_what_the_processor_makes():
    scenes = [scene("train", i) for i in range(3)]
    wanted = build_processor().image_processor([s.image for s in scenes], return_tensors="pt")["pixel_values"]
    assert torch.allclose(pixel_values(scenes), wanted, atol=1e-6)


def test_cell_labels_mark_objects_and_the_box(packer):
    picture = next(s for s in (scene("train", i) for i in range(50)) if s.boxed is not None)
    batch = packer.batch(picture.index, 1)
    boxed = picture.objects[picture.boxed]
    left, top, right, bottom = (edge // 10 for edge in boxed.frame)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    marked = batch.cell_boxed.view(8, 8).bool()
    assert marked.any() and not (marked & ~inside).any()
    assert len(batch.cell_class[0, marked.flatten()].unique()) == 1
    assert ((batch.cell_class > 0) == (batch.cell_colour > 0)).all()


def test_every_family_is_trained_on(packer):
    assert set(packer.batch(0, 20).family.tolist()) == set(range(len(FAMILIES)))
