import pytest
import torch

from mmlens.pretrained.architecture import build_model
from mmlens.pretrained.batches import N_CELLS, Packer
from mmlens.pretrained.objective import AuxiliaryHeads, losses
from mmlens.pretrained.vocabulary import build_tokenizer


@pytest.fixture(scope="module")
def parts():
    tokenizer = build_tokenizer()
    return build_model(0, layers=2, vision_layers=1), AuxiliaryHeads(tokenizer), Packer(tokenizer, seed=0)


def test_packing_changes_nothing_each_question_alone_through_hugging_face_gives_the_same_loss(parts):
    model, heads, packer = parts
    batch = packer.batch(0, 4)
    found = losses(model, heads, batch, eos=1)
    logits = []
    for image, position in batch.answer_at.tolist():
        number = batch.segment[image, position]
        mine = (batch.segment[image] == 0) | (batch.segment[image] == number)
        ids = batch.input_ids[image, mine][None, :-1]
        pixels = batch.pixel_values[image : image + 1]
        whole = model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids))
        logits.append(whole.logits[0, -1])
    alone = torch.stack(logits)
    assert torch.allclose(torch.nn.functional.cross_entropy(alone, batch.answer), found.answer, atol=1e-5)
    assert torch.equal(alone.argmax(-1) == batch.answer, found.right)


def test_every_weight_is_trained_but_the_towers_final_norm(parts):
    model, heads, packer = parts
    model.zero_grad()
    losses(model, heads, packer.batch(0, 8), eos=1).total.backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == {f"model.vision_tower.post_layernorm.{part}" for part in ("weight", "bias")}
    assert all(p.grad is not None and p.grad.any() for p in heads.parameters())


def test_dense_loss_vanishes_when_the_labels_can_be_read_off(parts):
    _, heads, packer = parts
    batch = packer.batch(0, 4)
    before = heads.dense(torch.randn(4, N_CELLS, 96), batch)
    exact = AuxiliaryHeads(build_tokenizer())
    cells = torch.zeros(4, N_CELLS, 96)
    for offset, reader, labels in (
        (0, exact.classes, batch.cell_class),
        (20, exact.colours, batch.cell_colour),
        (40, exact.boxed, batch.cell_boxed),
    ):
        cells += torch.nn.functional.one_hot(labels + offset, 96) * 50.0
        torch.nn.init.zeros_(reader.bias)
        reader.weight.data = torch.eye(96)[offset : offset + reader.out_features]
    assert exact.dense(cells, batch) < 1e-3 < before


def test_alignment_loss_falls_when_cells_are_the_words(parts):
    model, heads, packer = parts
    batch, words = packer.batch(0, 4), model.get_input_embeddings().weight.detach()
    at = (batch.cell_class - 1).clamp(min=0), (batch.cell_colour - 1).clamp(min=0)
    unit = torch.nn.functional.normalize(words, dim=-1)
    cells = unit[heads.class_ids[at[0]]] + unit[heads.colour_ids[at[1]]]
    assert heads.align(cells, words, batch) < 0.3 * heads.align(torch.randn_like(cells), words, batch)
