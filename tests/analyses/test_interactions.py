"""Pairwise interactions: brute force over all masks, the exact ones of a planted model, and their intervals."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from mmlens.analyses.design import draw_design
from mmlens.analyses.interactions import fit_interactions, head_interactions
from mmlens.datasets import scenes
from mmlens.errors import DesignError
from mmlens.model import HookedVLM
from mmlens.pretrained import path
from mmlens.recipes.planted_truth import SEED, TRUTH
from mmlens.result import InteractionResult, PlantedTruth, Result
from mmlens.sweeps import collect, sweep
from tests.analyses.build import helped_prompts, planted_model
from tests.engine.build import tiny_model

HEADS = [(0, 0), (1, 1), (2, 0)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def game(masks: torch.Tensor) -> torch.Tensor:
    """Six heads: main effects, a redundant pair, one that needs its partner, and a triple."""
    x = masks.flatten(1).double()
    a, b, c = x[:, 0], x[:, 3], x[:, 4]
    return x @ torch.linspace(-1, 1, 6).double() - 2 * a * b + 1.5 * b * c + 0.8 * a * b * c + 3


def banzhaf(first: int, second: int) -> float:
    """Brute force: the mean second difference over all subsets of the other heads."""
    total = []
    others = [k for k in range(6) if k not in (first, second)]
    for rest in itertools.product([False, True], repeat=4):
        masks = torch.zeros(4, 6, dtype=torch.bool)
        masks[:, others] = torch.tensor(rest)
        masks[1:3, first], masks[2:, second] = True, True
        none, one, both, other = game(masks.reshape(4, 3, 2)).tolist()
        total.append(both - one - other + none)
    return float(np.mean(total))


def test_all_masks_give_the_banzhaf_interactions_exactly() -> None:
    half = torch.tensor(list(itertools.product([False, True], repeat=5)))
    rows = torch.cat([torch.zeros(32, 1, dtype=torch.bool), half], dim=1)
    design = draw_design(64, 3, 2, kind="antithetic", generator=rng())
    design.masks[:] = torch.stack([rows, ~rows], dim=1).flatten(0, 1).reshape(64, 3, 2)
    fit = fit_interactions(design, game(design.masks), HEADS, generator=rng())
    assert fit.pairs == (((0, 0), (1, 1)), ((0, 0), (2, 0)), ((1, 1), (2, 0)))
    expected = [banzhaf(0, 3), banzhaf(0, 4), banzhaf(3, 4)]
    np.testing.assert_allclose(expected, [-1.6, 0.4, 1.9], atol=1e-12)
    np.testing.assert_allclose(fit.interaction, expected, atol=1e-10)


@pytest.mark.parametrize("kind", ["antithetic", "iid"])
def test_intervals_cover_as_often_as_they_say(kind: Any) -> None:
    truth, generator, covered = np.array([banzhaf(0, 3), banzhaf(0, 4), banzhaf(3, 4)]), rng(), []
    for _ in range(150):
        design = draw_design(96, 3, 2, kind=kind, generator=generator)
        values = game(design.masks) + torch.randn(96, generator=generator).double()
        fit = fit_interactions(design, values, HEADS, confidence=0.9, n_boot=200, generator=generator)
        covered.append((fit.interval[0] <= truth) & (truth <= fit.interval[1]))
    assert 0.85 < np.mean(covered) < 0.95  # 450 intervals, a standard error of .014


@pytest.mark.parametrize(("law", "tolerance"), [("antithetic", 1e-4), ("iid", 0.5)])
def test_redundant_heads_stand_in_for_each_other_as_planted(law: Any, tolerance: float) -> None:
    truth = PlantedTruth.load(path("planted-redundant") / TRUTH).first(2)
    model = HookedVLM.from_pretrained("planted-redundant")
    prompts = scenes.prompts("heldout", 2, family="main", seed=SEED)
    found = head_interactions(
        model, prompts, truth.players, n_masks=256, design=law, progress=False, self_check=False
    )
    exact = truth.interactions("main", index="banzhaf").values
    expected = [exact[truth.players.index(one), truth.players.index(other)] for one, other in found.pairs]
    assert max(expected) < -1
    np.testing.assert_allclose(found.interaction.mean("sample"), expected, atol=tolerance)
    assert found.interaction.shape == (2, 3) and found.info.settings["design"] == law
    assert found.pairs == tuple(itertools.combinations(truth.players, 2))
    assert float(found.interval.sel(bound="upper").max()) < 0  # every pair is sure to be redundant


QUICK: dict[str, Any] = {"n_masks": 64, "self_check": False, "progress": False}


def test_the_result_says_what_it_is_and_is_saved(tmp_path: Any) -> None:
    model = planted_model()
    prompts = helped_prompts(model, 2)
    found = head_interactions(model, prompts, [(0, 1), (2, 3), (1, 0)], baseline="knockout", **QUICK)
    assert found.data.attrs == {
        "metric": "logit",
        "unit": "logit",
        "baseline": "knockout",
        "design": "antithetic",
    }
    assert found.data["answer"].values.tolist() == [one.answer for one in prompts]
    assert found.data["n_masks"].values.tolist() == [64, 64] and found.info.settings["n_runs"] == 128
    assert found.info.settings["heads"] == [[0, 1], [2, 3], [1, 0]]
    assert found.info.attn_implementation == "prefix" and len(set(found.info.image_sha256)) == 2
    again = Result.load(found.save(tmp_path / "pairs.mmlens"))
    assert isinstance(again, InteractionResult) and again.data.identical(found.data)
    assert again.info == found.info


def test_confidence_widens_and_names_the_interval() -> None:
    model = planted_model()
    prompts = helped_prompts(model, 1)
    options = {**QUICK, "n_masks": 32, "design": "iid"}
    widths = []
    for confidence in (0.5, 0.99):
        found = head_interactions(model, prompts, [(0, 1), (2, 3)], confidence=confidence, **options)
        assert f"{confidence:.0%}".replace("%", " %") in found.interval.attrs["description"]
        widths.append(float(found.interval.diff("bound").mean()))
    assert widths[1] > 2 * widths[0] > 0


def test_a_sweep_gives_the_same_as_all_prompts_at_once(tmp_path: Any) -> None:
    model = planted_model()
    prompts = helped_prompts(model, 3)
    options = {"heads": [[0, 1], [2, 3], [1, 0]], "n_masks": 64, "self_check": False}
    report = sweep(model, prompts, "head_interactions", tmp_path, options, progress=False)
    assert dict(report.poison) == {} and report.computed == 3
    swept = collect(tmp_path)
    whole = head_interactions(model, prompts, options["heads"], **QUICK)
    assert isinstance(swept, InteractionResult) and swept.pairs == whole.pairs
    np.testing.assert_allclose(swept.data["interaction"], whole.interaction, atol=1e-5)
    np.testing.assert_allclose(swept.data["interval"], whole.interval, atol=1e-5)
    assert swept.data.attrs == whole.data.attrs
    alone = head_interactions(model, prompts[1:2], options["heads"], first_sample=1, **QUICK)
    np.testing.assert_allclose(alone.interaction[0], whole.interaction[1], atol=1e-5)


def test_masks_follow_the_number_of_the_sample() -> None:
    model = tiny_model()  # every head matters, so that other masks give other estimates
    prompts = helped_prompts(model, 1) * 2
    whole = head_interactions(model, prompts, [(0, 1), (2, 3)], **QUICK)
    assert float(whole.interaction[0, 0]) != float(whole.interaction[1, 0])
    second = head_interactions(model, prompts[:1], [(0, 1), (2, 3)], first_sample=1, **QUICK)
    np.testing.assert_allclose(second.interaction[0], whole.interaction[1], atol=1e-5)


@pytest.mark.parametrize(
    ("heads", "options", "message"),
    [
        ([(0, 0), (0, 1)], {"confidence": 1.5}, "confidence=1.5 must lie strictly between"),
        ([(0, 0)], {}, "two or more different heads"),
        ([(0, 0), (0, 0)], {}, "two or more different heads"),
        ([(0, 0), (9, 0)], {}, r"of 3 layers with 4 heads; got \(layer, head\) \(0, 0\), \(9, 0\)"),
        ([(0, 0), (0, 1)], {"n_masks": 4}, "4 masks .* too few for 1 unknowns"),
        ([(0, 0), (0, 1)], {"n_masks": 14, "design": "iid"}, "14 masks .* too few for 13 unknowns"),
        ([(0, 0), (0, 1)], {"design": "hadamard"}, "does not tell products of heads apart"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_refused_before_anything_runs(heads: Any, options: dict[str, Any], message: str) -> None:
    model = planted_model()
    with pytest.raises(DesignError, match=message):
        head_interactions(model, helped_prompts(model, 1), heads, progress=False, **options)
