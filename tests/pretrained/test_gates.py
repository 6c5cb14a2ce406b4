"""Gates are held against hard masks: what the weights do must be what closing the edges does."""

import copy

import pytest
import torch

from mmlens.datasets import scenes
from mmlens.interventions import Block, HeadMask
from mmlens.model import HookedVLM
from mmlens.pretrained.architecture import build_model, build_processor
from mmlens.pretrained.gates import apply_gates, gate_strength
from mmlens.pretrained.plantings import PLANTINGS
from mmlens.pretrained.vocabulary import build_tokenizer

STRENGTH = torch.full((6,), 16.0)


@pytest.fixture(scope="module")
def plain():
    model = build_model(3, vision_layers=1)
    with torch.no_grad():  # the stock scale leaves attention near uniform
        for name, p in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                p.mul_(2)
    return model.eval()


def gated(plain, name):
    model = copy.deepcopy(plain)
    apply_gates(model, build_tokenizer(), PLANTINGS[name], STRENGTH)
    return HookedVLM.from_hf(model, processor=build_processor())


@pytest.fixture(scope="module", params=list(PLANTINGS))
def planted(request, plain):
    model = gated(plain, request.param)
    prompts = [scenes.prompts("train", 2, family=family)[1] for family in ("main", "colour", "hop")]
    return PLANTINGS[request.param], model, model.prepare(prompts)


def patterns(model, inputs):
    _, cache = model.run_with_cache(inputs, names_filter=lambda name: name.endswith("attn.hook_pattern"))
    return torch.stack([cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(6)], 1)


def edges(inputs, src, dst):
    return inputs.mask(dst)[:, None, None, :, None] & inputs.mask(src)[:, None, None, None]


def table(heads):
    mask = torch.zeros(6, 8, dtype=torch.bool)
    for head in heads:
        mask[head.layer, head.head] = True
    return mask


def test_gated_heads_give_the_image_nothing_and_the_others_something(planted):
    row, model, inputs = planted
    dst = "role" if row.relayed else "text"
    weight = (patterns(model, inputs) * edges(inputs, "image", dst)).sum(-1).amax((0, -1))
    reading = table([head for head in row.heads if head.part != "relay"])
    assert float(weight[~reading].max()) < 1e-25
    assert float(weight[reading].min()) > 1e-3


def test_closing_the_gated_heads_by_force_changes_nothing(planted):
    row, model, inputs = planted
    mask = table([head for head in row.heads if head.part != "relay"])
    with torch.no_grad():
        free = model(inputs)
        for baseline in ("knockout", "mean_image_tokens"):
            forced = model.run(inputs, [HeadMask(mask=mask, baseline=baseline)], strict=False).logits
            assert torch.allclose(free, forced, atol=2e-5)
        closed = model.run(inputs, [Block(src="image", dst="text")]).logits
    assert not torch.allclose(free, closed, atol=1e-3), "the planted heads must carry something"


def test_image_tokens_read_each_other_as_before(plain):
    """A gate costs one rotary pair; with that pair and the flags empty from the start, nothing else changes."""
    row, tokenizer = PLANTINGS["layer"], build_tokenizer()
    start = copy.deepcopy(plain)
    apply_gates(start, tokenizer, row, torch.zeros(6))
    inputs = None
    seen = []
    for strength in (torch.zeros(6), STRENGTH):
        model = copy.deepcopy(start)
        apply_gates(model, tokenizer, row, strength)
        hooked = HookedVLM.from_hf(model, processor=build_processor())
        inputs = inputs or hooked.prepare(scenes.prompts("train", 1))
        seen.append((patterns(hooked, inputs) * edges(inputs, "image", "image"))[:, 0])
    assert torch.allclose(*seen, atol=1e-6)
    assert float(seen[0].max()) > 0.01


def test_a_decoy_looks_where_its_model_looks_and_writes_nothing(plain):
    model = gated(plain, "decoys")
    inputs = model.prepare(scenes.prompts("train", 2))
    found = patterns(model, inputs)
    for decoy in PLANTINGS["decoys"].of("decoy"):
        assert torch.equal(found[:, decoy.layer, decoy.head], found[:, decoy.layer, decoy.model])
        assert not model.W_O[decoy.layer, decoy.head].any()
        assert model.W_V[decoy.layer, decoy.head].any()


def test_in_a_relay_only_the_role_tag_reads_the_image_and_only_relays_read_the_role_tag(plain):
    model, row = gated(plain, "relay"), PLANTINGS["relay"]
    inputs = model.prepare(scenes.prompts("train", 3, family="colour"))
    found = patterns(model, inputs)
    others = (found * edges(inputs, "image", ["question", "final"])).sum(-1)
    assert float(others.max()) < 1e-25
    passed = (found * edges(inputs, "role", "final")).sum(-1).amax((0, -1))
    relays = table(row.of("relay"))
    assert float(passed[~relays].max()) < 1e-25 and float(passed[relays].min()) > 1e-12


def test_gating_twice_is_gating_once(plain):
    once = copy.deepcopy(plain)
    apply_gates(once, build_tokenizer(), PLANTINGS["relay"], STRENGTH)
    twice = copy.deepcopy(once)
    apply_gates(twice, build_tokenizer(), PLANTINGS["relay"], STRENGTH)
    pairs = zip(once.parameters(), twice.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_strength_follows_the_largest_activation(plain):
    small, large = torch.full((4, 96), 2.0), torch.full((4, 96), 2.0)
    large[1] = 6.0
    weak, strong = gate_strength(plain, [small, large])
    assert float(strong) == pytest.approx(3 * float(weak))
