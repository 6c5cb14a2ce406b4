import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from mmlens.datasets.scenes import scene
from mmlens.pretrained.architecture import build_model
from mmlens.pretrained.batches import N_CELLS, NEVER, Packer
from mmlens.pretrained.evaluate import barred
from mmlens.pretrained.objective import (
    ALIGN_WEIGHT,
    DENSE_WEIGHT,
    END_WEIGHT,
    AuxiliaryHeads,
    early_layers_closed,
    losses,
    tower_losses,
)
from mmlens.pretrained.vocabulary import EOS, build_tokenizer

OFFSETS = {"class": 0, "colour": 10, "boxed": 20, "value": 30, "anchor": 50, "row": 60, "column": 70}
LABELS = ("class", "colour", "boxed", "value", "anchor")
LAYERS = 3


@pytest.fixture(scope="module")
def parts():
    tokenizer = build_tokenizer()
    return (
        build_model(0, layers=LAYERS, vision_layers=1),
        AuxiliaryHeads(tokenizer),
        Packer(tokenizer, seed=0),
    )


@pytest.fixture
def batch(parts):
    """Four images: open everywhere, closed in the first layer, in the first two, and in all."""
    return replace(parts[2].batch(0, 4), open_from=torch.tensor([0, 1, 2, NEVER]))


def opened(batch):
    return replace(batch, open_from=torch.zeros_like(batch.open_from))


def alone(batch):
    """Every question on its own: its image's number, and its ids without the answer."""
    for image, position in batch.answer_at.tolist():
        mine = (batch.segment[image] == 0) | (batch.segment[image] == batch.segment[image, position])
        yield image, batch.input_ids[image, mine][None, :-1]


def test_packing_changes_nothing_each_question_alone_through_hugging_face_gives_the_same_loss(parts, batch):
    model, heads, _ = parts
    batch = opened(batch)
    found = losses(model, heads, batch, eos=1)
    logits = []
    for image, ids in alone(batch):
        pixels = batch.pixel_values[image : image + 1]
        whole = model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids))
        logits.append(whole.logits[0, -1])
    assert torch.allclose(F.cross_entropy(torch.stack(logits), batch.answer), found.answer, atol=1e-5)
    assert torch.equal(torch.stack(logits).argmax(-1) == batch.answer, found.right)


@torch.no_grad()
def with_a_mask_a_layer(model, ids, pixels, open_from):
    """Logits of the last token: Hugging Face's layers, one after another, each under a mask made by hand."""
    inner, text = model.model, model.model.language_model
    image = ids == model.config.image_token_id
    features = inner.multi_modal_projector(inner.vision_tower(pixels).last_hidden_state[:, 1:])
    hidden = text.embed_tokens(ids.masked_fill(image, 0)).masked_scatter(image[..., None], features)
    positions = torch.arange(ids.shape[1])[None]
    rotary = text.rotary_emb(hidden, positions)
    real = torch.ones_like(ids)
    whole = torch.full((1, 1, ids.shape[1], ids.shape[1]), torch.finfo(torch.float32).min).triu(1)
    for depth, layer in enumerate(text.layers):
        mask = barred(ids, real, model.config.image_token_id) if depth < open_from else whole
        hidden = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
    return model.lm_head(text.norm(hidden))[0, -1]


def test_closing_early_layers_is_a_mask_for_each_layer_of_the_plain_model(parts, batch):
    model, heads, _ = parts
    found = losses(model, heads, batch, eos=1)
    logits = torch.stack(
        [
            with_a_mask_a_layer(
                model, ids, batch.pixel_values[image : image + 1], int(batch.open_from[image])
            )
            for image, ids in alone(batch)
        ]
    )
    assert set(batch.answer_at[:, 0].tolist()) == {0, 1, 2, 3}
    assert torch.allclose(F.cross_entropy(logits, batch.answer), found.answer, atol=1e-5)
    assert torch.equal(logits.argmax(-1) == batch.answer, found.right)
    assert (losses(model, heads, opened(batch), eos=1).answer - found.answer).abs() > 1e-3


@pytest.mark.parametrize(
    ("open_from", "told"), [(NEVER, False), (LAYERS, False), (LAYERS - 1, True), (0, True)]
)
def test_a_question_depends_on_the_image_unless_every_layer_is_closed(parts, open_from, told):
    model, heads, packer = parts
    batch = replace(packer.batch(0, 1), open_from=torch.tensor([open_from]))
    other = replace(batch, pixel_values=-batch.pixel_values)
    one, two = (losses(model, heads, each, eos=1).answer for each in (batch, other))
    assert bool((one - two).abs() > 1e-4) == told
    assert told or torch.equal(one, two)


def test_layers_are_open_again_afterwards_even_after_an_error(parts, batch):
    layers = parts[0].model.language_model.layers
    with early_layers_closed(layers, batch):
        assert [len(layer._forward_pre_hooks) for layer in layers] == [1, 1, 1]
    with early_layers_closed(layers, replace(batch, open_from=torch.tensor([0, 1, 0, 0]))):
        assert [len(layer._forward_pre_hooks) for layer in layers] == [1, 0, 0]
    with pytest.raises(RuntimeError, match="stopped"), early_layers_closed(layers, batch):
        raise RuntimeError("stopped")
    assert not any(layer._forward_pre_hooks for layer in layers)


def test_every_weight_is_trained_but_the_towers_final_norm(parts):
    model, heads, packer = parts
    model.zero_grad()
    losses(model, heads, packer.batch(0, 8), eos=1).total.backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == {f"model.vision_tower.post_layernorm.{part}" for part in ("weight", "bias")}
    assert all(p.grad is not None and p.grad.any() for p in heads.parameters())


def test_the_towers_part_touches_the_tower_and_the_readers_only(parts, batch):
    model, heads, _ = parts
    model.zero_grad()
    heads.zero_grad()
    found = tower_losses(model, heads, batch)
    found.total.backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None}
    tower = {name for name, _ in model.named_parameters() if "vision_tower" in name}
    assert touched == {name for name in tower if "post_layernorm" not in name}
    assert all(p.grad is not None and p.grad.any() for p in heads.parameters())
    assert torch.equal(found.total, found.dense) and found.answer.item() == found.align.item() == 0
    assert torch.allclose(found.dense, losses(model, heads, batch, eos=1).dense)
    assert len(found.right) == 0


def test_the_total_is_the_weighted_sum(parts, batch):
    model, heads, _ = parts
    tokenizer = build_tokenizer()
    eos = tokenizer.convert_tokens_to_ids(EOS)
    found = losses(model, heads, batch, eos=eos)
    end = found.total - found.answer - DENSE_WEIGHT * found.dense - ALIGN_WEIGHT * found.align
    assert end.item() / END_WEIGHT == pytest.approx(math.log(len(tokenizer)), rel=0.3), "untrained: any word"
    half = losses(model, heads, batch, eos=eos, align_weight=0.5)
    assert torch.allclose(half.total - found.total, (0.5 - ALIGN_WEIGHT) * found.align, atol=1e-5)


def test_without_readers_the_answers_alone_are_learnt_with_every_layer_open(parts, batch):
    model, heads, _ = parts
    found, wanted = losses(model, None, batch, eos=1), losses(model, heads, opened(batch), eos=1)
    assert torch.equal(found.answer, wanted.answer) and found.dense.item() == found.align.item() == 0
    auxiliary = DENSE_WEIGHT * wanted.dense + ALIGN_WEIGHT * wanted.align
    assert torch.allclose(found.total, wanted.total - auxiliary, atol=1e-5)


def read_off(batch):
    """Readers and cells of which every label can be read off exactly."""
    heads = AuxiliaryHeads(build_tokenizer())
    cells = torch.zeros(len(batch.open_from), N_CELLS, 96)
    place = torch.arange(N_CELLS).expand(len(cells), -1)
    labels = {label: getattr(batch, f"cell_{label}") for label in LABELS}
    for name, label in {**labels, "row": place // 8, "column": place % 8}.items():
        cells += F.one_hot(label + OFFSETS[name], 96) * 50.0
    readers = (heads.classes, heads.colours, heads.boxed, heads.values, heads.anchors, heads.places)
    starts = [OFFSETS[name] for name in (*LABELS, "row")]
    for reader, start in zip(readers, starts, strict=True):
        torch.nn.init.zeros_(reader.bias)
        reader.weight.data = torch.eye(96)[start : start + reader.out_features]
    heads.places.weight.data[8:] = torch.eye(96)[OFFSETS["column"] : OFFSETS["column"] + 8]
    return heads, cells


def test_dense_loss_vanishes_when_the_labels_can_be_read_off(parts, batch):
    heads, cells = read_off(batch)
    assert heads.dense(cells, batch) < 1e-3 < parts[1].dense(torch.randn(4, N_CELLS, 96), batch)


@pytest.mark.parametrize("label", LABELS)
def test_dense_loss_asks_for_every_label(label, batch):
    heads, cells = read_off(batch)
    labels = getattr(batch, f"cell_{label}").clone()
    shown = batch.cell_value > 0 if label == "value" else batch.cell_class > 0
    assert shown.any()
    labels[shown] = 1 - labels[shown] if label in ("boxed", "anchor") else labels[shown] % 8 + 1
    assert heads.dense(cells, replace(batch, **{f"cell_{label}": labels})) > 0.3


@pytest.mark.parametrize("step", [1, 8], ids=["column", "row"])
def test_dense_loss_asks_for_the_place(step, batch):
    heads, cells = read_off(batch)
    part = slice(OFFSETS["row"], OFFSETS["column"] + 8)
    cells[..., part] = cells[..., part].roll(step, 1)
    assert heads.dense(cells, batch) > 0.3


@pytest.mark.parametrize("label", ["boxed", "value"])
def test_box_and_value_are_asked_only_where_they_are_shown(label, batch):
    heads, cells = read_off(batch)
    shown = batch.cell_class > 0 if label == "boxed" else batch.cell_value > 0
    part = slice(OFFSETS[label], OFFSETS[label] + 11)
    cells[..., part] = torch.where(shown[..., None], cells[..., part], torch.randn(11) * 50)
    assert heads.dense(cells, batch) < 1e-3


def test_alignment_loss_falls_when_cells_are_the_words(parts, batch):
    model, heads, _ = parts
    unit = F.normalize(model.get_input_embeddings().weight.detach(), dim=-1)
    cells = torch.zeros(4, N_CELLS, 96)
    for label, ids in (("class", heads.class_ids), ("colour", heads.colour_ids), ("value", heads.digit_ids)):
        labels = getattr(batch, f"cell_{label}")
        cells += unit[ids[(labels - 1).clamp(min=0)]] * (labels > 0)[..., None]
    assert heads.align(cells, unit, batch) < 0.3 * heads.align(torch.randn_like(cells), unit, batch)
    for label in ("class", "colour", "value"):
        labels = getattr(batch, f"cell_{label}")
        wrong = torch.where(labels > 0, labels % 8 + 1, 0)
        assert heads.align(cells, unit, replace(batch, **{f"cell_{label}": wrong})) > 1


def test_scenes_without_a_digit_have_losses_and_gradients_too(parts):
    model, heads, packer = parts
    index = next(i for i in range(20) if not scene("train", i).named("digit"))
    batch = packer.batch(index, 1)
    model.zero_grad()
    found = losses(model, heads, batch, eos=1)
    found.total.backward()
    assert all(getattr(found, name).isfinite() for name in ("total", "answer", "dense", "align"))
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert torch.equal(tower_losses(model, heads, batch).dense, found.dense)
