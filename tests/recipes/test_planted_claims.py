"""What the planted models' folders claim, measured again on a few prompts."""

import numpy as np
import pytest
import torch

from mmlens.analyses import head_attribution, recovery
from mmlens.datasets import scenes
from mmlens.interventions import HeadMask
from mmlens.model import HookedVLM
from mmlens.pretrained import names, path
from mmlens.pretrained.plantings import PLANTINGS, planting
from mmlens.recipes.planted_table import SEED as TABLE_SEED
from mmlens.recipes.planted_truth import CLAIM_ACCURACY, CLAIM_LOSS, SEED, TRUTH, players
from mmlens.result import PlantedTruth

PLANTED = [name for name in names() if name.startswith("planted-")]


@pytest.fixture(scope="module", params=PLANTED)
def planted(request):
    name = request.param
    truth = PlantedTruth.load(path(name) / TRUTH)
    return planting(name), HookedVLM.from_pretrained(name), truth


def test_there_is_one_for_every_planting():
    assert {name.removeprefix("planted-") for name in PLANTED} == set(PLANTINGS)


def test_the_truth_is_about_these_weights_and_these_heads(planted):
    row, model, truth = planted
    assert truth.info.weight_fingerprint == model.weight_fingerprint()
    assert truth.heads == [(head.layer, head.head, head.part) for head in row.heads]
    assert truth.info.settings["proof"]["image weight of unplanted heads"] < 1e-20


def test_claimed_families_need_the_planted_heads_and_no_other(planted):
    _, _, truth = planted
    assert len(truth.families) >= 3
    shares = truth.data
    assert float(shares["full_accuracy"].min()) >= CLAIM_ACCURACY
    lost = abs(shares["full_accuracy"] - shares["planted_only_accuracy"])
    assert float(lost.max()) <= CLAIM_LOSS
    assert float((shares["unplanted_only_accuracy"] - shares["chance"]).max()) <= 0.05


def test_closing_every_unplanted_head_changes_no_logit(planted):
    row, model, truth = planted
    mask = torch.zeros(6, 8, dtype=torch.bool)
    for layer, head in players(row):
        mask[layer, head] = True
    prompts = [p for family in truth.families for p in scenes.prompts("heldout", 3, family=family, seed=5)]
    inputs = model.prepare(prompts)
    with torch.no_grad():
        free = model(inputs)[:, -1]
        forced = model.run(inputs, [HeadMask(mask=mask, baseline="knockout")], strict=False).logits[:, -1]
    assert float((free - forced).abs().max()) <= 1e-4


def test_the_shipped_subset_values_are_those_of_the_shipped_weights(planted):
    row, model, truth = planted
    family = truth.families[0]
    prompt = scenes.prompts("heldout", 1, family=family, seed=SEED)[0]
    inputs = model.prepare([prompt])
    for subset in (0, 1, 2 ** len(players(row)) - 1):
        mask = torch.zeros(6, 8, dtype=torch.bool)
        for i, (layer, head) in enumerate(players(row)):
            mask[layer, head] = bool(subset >> i & 1)
        for baseline in truth.baselines:
            with torch.no_grad():
                edit = HeadMask(mask=mask, baseline=baseline)
                logits = model.run(inputs, [edit], strict=False, logits_pos="final").logits[0, -1]
            kept = float(truth.data["value"].sel(baseline=baseline, family=family)[0, subset])
            assert kept == pytest.approx(float(logits[inputs.answer_ids[0]]), abs=1e-3)


def test_head_attribution_finds_the_heads_in_use(planted):
    _, model, truth = planted
    family = truth.families[0]
    prompts = scenes.prompts("attribution", 8, family=family, seed=TABLE_SEED)
    found = recovery({"theta": head_attribution(model, prompts, progress=False)}, truth, family=family)
    assert float(found.data["auroc"][0]) >= 0.99
    assert float(found.data["correlation"][0]) >= 0.9  # eight prompts; the documents' table has more


def test_decoys_are_no_heads_in_use():
    truth = PlantedTruth.load(path("planted-decoys") / TRUTH)
    for family in truth.families:
        used = truth.in_use(family).values
        for layer, head, part in truth.heads:
            if part == "decoy":
                assert not used[layer, head]
                assert abs(float(truth.exact(family)[layer, head])) < 1e-4


def test_any_redundant_head_suffices():
    truth = PlantedTruth.load(path("planted-redundant") / TRUTH)
    accuracy = truth.data["accuracy"].sel({"baseline": "knockout"}).values
    alone = accuracy[:, [1, 2, 4]]
    assert np.all(alone >= 0.8 * accuracy[:, [7]]), "one head must do almost as well as all three"
