"""The truth of a planting, measured on a toy that no training touched: nothing is right, everything is exact."""

import copy

import numpy as np
import pytest
import torch

from mmlens.datasets import scenes
from mmlens.errors import DesignError
from mmlens.interventions import HeadMask
from mmlens.model import HookedVLM
from mmlens.pretrained.architecture import build_model, build_processor
from mmlens.pretrained.gates import apply_gates
from mmlens.pretrained.plantings import PLANTINGS
from mmlens.pretrained.vocabulary import build_tokenizer
from mmlens.recipes.planted_truth import BASELINES, SEED, is_claimed, planted_truth, players, proof


@pytest.fixture(scope="module")
def toys():
    plain = build_model(3, vision_layers=1).eval()
    made = {}
    for name in ("relay", "spread"):
        model = copy.deepcopy(plain)
        apply_gates(model, build_tokenizer(), PLANTINGS[name], torch.full((6,), 16.0))
        made[name] = HookedVLM.from_hf(model, processor=build_processor())
    return made


@pytest.fixture(scope="module")
def truth(toys):
    return planted_truth(toys["spread"], PLANTINGS["spread"], n=2, n_accuracy=4, bar=0.0, progress=False)


def test_every_subset_is_what_closing_the_other_heads_by_hand_gives(toys, truth):
    model, row = toys["spread"], PLANTINGS["spread"]
    prompt = scenes.prompts("heldout", 2, family=truth.families[1], seed=SEED)[1]
    inputs = model.prepare([prompt])
    for baseline in BASELINES:
        for subset in (0, 5, 15):
            mask = torch.zeros(6, 8, dtype=torch.bool)
            for i, (layer, head) in enumerate(players(row)):
                mask[layer, head] = bool(subset >> i & 1)
            with torch.no_grad():
                logits = model.run(inputs, [HeadMask(mask=mask, baseline=baseline)]).logits[0, -1]
            kept = truth.data["value"].sel(baseline=baseline, family=truth.families[1])[1, subset]
            assert float(kept) == pytest.approx(float(logits[inputs.answer_ids[0]]), abs=2e-5)


def test_no_unplanted_head_has_any_exact_value(truth):
    planted = np.zeros((6, 8), bool)
    for layer, head in players(PLANTINGS["spread"]):
        planted[layer, head] = True
    for family in truth.families:
        exact = truth.exact(family).values
        assert not exact[~planted].any() and exact[planted].any()


def test_the_proof_names_both_halves_of_a_relay(toys):
    prompts = {"main": scenes.prompts("heldout", 3)}
    found = proof(toys["relay"], PLANTINGS["relay"], prompts)
    assert found["image weight of unplanted heads"] < 1e-25 < found["image weight of planted heads"]
    assert found["accuracy, nothing but the role tag can read the image"] == found["accuracy"]
    assert len(found) == 6
    assert len(proof(toys["spread"], PLANTINGS["spread"], prompts)) == 2


def test_a_family_is_claimed_only_if_it_is_answered_through_the_planted_heads():
    good = {"full": 0.95, "planted_only": 0.95, "unplanted_only": 0.1, "chance": 0.1}
    assert is_claimed(good)
    assert not is_claimed({**good, "planted_only": 0.93})
    assert not is_claimed({**good, "full": 0.7, "planted_only": 0.7})
    assert is_claimed({**good, "worst_alone": 0.9}) and not is_claimed({**good, "worst_alone": 0.6})


def test_a_model_that_answers_nothing_has_no_truth(toys):
    with pytest.raises(DesignError, match="answers no family"):
        planted_truth(toys["relay"], PLANTINGS["relay"], n=1, n_accuracy=2, bar=1.01, progress=False)
