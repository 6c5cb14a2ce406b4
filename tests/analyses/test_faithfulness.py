from typing import Any

import numpy as np
import pytest
import torch

from mmlens.analyses import attention_weight, faithfulness, head_attribution
from mmlens.analyses.faithfulness import (
    _bootstrap,
    _first_reaching,
    _intervals,
    _is_small,
    _sizes,
    top_heads,
)
from mmlens.errors import DesignError, NonFiniteError, ShapeError
from mmlens.interventions import HeadMask
from mmlens.result import FaithfulnessResult
from tests.analyses.build import PLANTED, helped_prompts, planted_model

QUICK: dict[str, Any] = {"n_random": 4, "n_boot": 100, "progress": False}


@pytest.fixture(scope="module")
def model() -> Any:
    return planted_model()


@pytest.fixture(scope="module")
def prompts(model: Any) -> list[Any]:
    return helped_prompts(model, 3)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    scores = np.zeros((3, 4))
    for rank, place in enumerate(PLANTED):
        scores[place] = 2.0 - rank
    return scores


@pytest.fixture(scope="module")
def result(model: Any, prompts: list[Any], truth: np.ndarray) -> FaithfulnessResult:
    return faithfulness(model, prompts, {"truth": truth, "reversed": -truth}, **QUICK)


def test_curves_equal_their_definition_on_the_plain_path(
    model: Any, prompts: list[Any], truth: np.ndarray, result: FaithfulnessResult
) -> None:
    inputs = model.prepare(prompts)

    def metric(mask: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            logits = model.run(inputs, [] if mask.all() else [HeadMask(mask=mask)], strict=False).logits[
                :, -1
            ]
        return logits.gather(1, inputs.answer_ids[:, None])[:, 0].double().numpy()

    everything, order = torch.ones(12, dtype=torch.bool), np.argsort(-truth.ravel(), kind="stable")
    clean, none = metric(everything.view(3, 4)), metric(~everything.view(3, 4))
    np.testing.assert_allclose(result.data["effect"], clean - none, atol=1e-5)
    mean_effect = (clean - none).mean()
    for k in (0, 1, 2, 7, 12):
        kept = torch.zeros(12, dtype=torch.bool)
        kept[order[:k].tolist()] = True
        keep, remove = metric(kept.view(3, 4)), metric(~kept.view(3, 4))
        found = result.data.sel({"method": "truth", "size": k})
        np.testing.assert_allclose(found["faithfulness"], (keep - none) / mean_effect, atol=1e-4)
        np.testing.assert_allclose(found["completeness"], (clean - remove) / mean_effect, atol=1e-4)
        np.testing.assert_allclose(found["own_faithfulness"], (keep - none) / (clean - none), atol=1e-3)
        pooled = (keep - none).sum() / (clean - none).sum()
        assert float(found["faithfulness"].mean()) == pytest.approx(pooled, abs=1e-4)


def test_the_planted_pair_is_all_there_is(result: FaithfulnessResult) -> None:
    curve = result.data["faithfulness"].mean("sample")
    np.testing.assert_allclose(curve.sel({"method": "truth", "size": slice(2, 12)}), 1.0, atol=1e-4)
    np.testing.assert_allclose(curve.sel({"method": "reversed", "size": slice(0, 10)}), 0.0, atol=1e-4)
    complete = result.data["completeness"].mean("sample")
    np.testing.assert_allclose(complete.sel({"method": "truth", "size": slice(2, 12)}), 1.0, atol=1e-4)
    assert float(result.data["k90"].sel({"method": "truth"})) <= 2
    assert float(result.data["k80"].sel({"method": "reversed"})) >= 11
    areas = result.data["auc_faithfulness"].mean("sample")
    assert float(areas.sel({"method": "truth"})) > 0.85 > 0.15 > float(areas.sel({"method": "reversed"}))


def test_random_rankings_lie_between_and_keep_the_ends(result: FaithfulnessResult) -> None:
    draws = result.data["random_faithfulness"].mean("sample")
    assert draws.sizes["draw"] == 4
    np.testing.assert_allclose(draws.sel(size=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(draws.sel(size=12), 1.0, atol=1e-5)
    area = float(result.data["random_auc_faithfulness"].mean())
    truth, reverse = (
        float(result.data["auc_faithfulness"].sel({"method": m}).mean()) for m in ("truth", "reversed")
    )
    assert reverse < area < truth


def test_areas_and_intervals(result: FaithfulnessResult) -> None:
    data = result.data
    curve = data["faithfulness"].sel({"method": "truth"}).values
    areas = np.trapezoid(curve, data["size"].values / 12, axis=-1)
    np.testing.assert_allclose(data["auc_faithfulness"].sel({"method": "truth"}), areas)
    mean, bounds = data["faithfulness"].mean("sample"), data["faithfulness_interval"]
    assert bool((bounds.sel(bound="lower") <= mean + 1e-9).all())
    assert bool((bounds.sel(bound="upper") >= mean - 1e-9).all())


def test_rankings_per_prompt(
    model: Any, prompts: list[Any], truth: np.ndarray, result: FaithfulnessResult
) -> None:
    mixed = faithfulness(model, prompts, {"mixed": np.stack([truth, -truth, truth])}, **QUICK)
    whole = result.data["faithfulness"]
    found = mixed.data["faithfulness"].sel({"method": "mixed"})
    np.testing.assert_allclose(found.isel(sample=0), whole.sel({"method": "truth"}).isel(sample=0), atol=1e-5)
    np.testing.assert_allclose(
        found.isel(sample=1), whole.sel({"method": "reversed"}).isel(sample=1), atol=1e-5
    )


def test_results_are_judged_on_other_prompts_only(model: Any, prompts: list[Any]) -> None:
    looked = attention_weight(model, prompts[:2], progress=False)
    with pytest.raises(DesignError, match=r"2 of these 3 prompts were used to compute the scores of looking"):
        faithfulness(model, prompts, {"looking": looked}, **QUICK)
    allowed = faithfulness(model, prompts, {"looking": looked}, allow_overlap=True, **QUICK)
    assert allowed.info.settings["prompts_also_fitted"] == {"looking": 2}
    elsewhere = helped_prompts(model, 2, first=50)
    fitted = head_attribution(model, elsewhere, n_masks=48, n_heldout=8, progress=False)
    clean = faithfulness(model, prompts, {"head attribution": fitted}, **QUICK)
    assert clean.info.settings["prompts_also_fitted"] == {"head attribution": 0}
    assert float(clean.data["faithfulness"].mean(("method", "sample")).sel(size=2)) == pytest.approx(
        1.0, abs=1e-4
    )


def test_the_same_image_with_another_question_is_another_prompt(model: Any, prompts: list[Any]) -> None:
    other = helped_prompts(model, 3, question="what shape is this object ?")
    looked = attention_weight(model, other, progress=False)
    found = faithfulness(model, prompts, {"looking": looked}, **QUICK)
    assert found.info.settings["prompts_also_fitted"] == {"looking": 0}


def test_one_prompt_has_no_interval(model: Any, prompts: list[Any], truth: np.ndarray) -> None:
    alone = faithfulness(model, prompts[:1], {"truth": truth}, sizes=[1, 2, 4], **QUICK)
    assert alone.data["size"].values.tolist() == [0, 1, 2, 4, 12]
    assert "faithfulness_interval" not in alone.data


def test_images_that_hurt_the_answer_are_refused(model: Any, prompts: list[Any], truth: np.ndarray) -> None:
    with pytest.raises(DesignError, match="the image does not help these answers"):
        faithfulness(model, prompts, {"truth": truth}, metric=_minus_answer, **QUICK)


def _minus_answer(logits: torch.Tensor, inputs: Any) -> torch.Tensor:
    return -logits[:, -1].gather(1, inputs.answer_ids[:, None])[:, 0]


def test_scores_of_another_shape(model: Any, prompts: list[Any], truth: np.ndarray) -> None:
    with pytest.raises(
        ShapeError, match=r"'flipped' have shape \[4, 3\]; expected \[layer, head\] = \[3, 4\]"
    ):
        faithfulness(model, prompts, {"flipped": truth.T}, **QUICK)
    with pytest.raises(NonFiniteError, match="no rank"):
        faithfulness(model, prompts, {"broken": truth * np.nan}, **QUICK)
    with pytest.raises(DesignError, match="no scores were given"):
        faithfulness(model, prompts, {}, **QUICK)
    with pytest.raises(DesignError, match="sizes run from 0"):
        faithfulness(model, prompts, {"truth": truth}, sizes=[13], **QUICK)
    with pytest.raises(DesignError, match="n_random=0"):
        faithfulness(model, prompts, {"truth": truth}, n_random=0)


# --- parts, by hand


def test_top_heads_by_hand() -> None:
    ranking = torch.tensor([[2, 0, 1], [1, 2, 0]])
    assert top_heads(ranking, 0).sum() == 0
    assert top_heads(ranking, 2).tolist() == [[True, False, True], [False, True, True]]


def test_automatic_sizes_grow() -> None:
    assert _sizes("auto", 12) == list(range(13))
    large = _sizes("auto", 1024)
    assert large[:18] == [*range(17), 20] and large[-1] == 1024
    assert len(large) < 45 and np.all(np.diff(large) > 0)


def test_first_reaching_by_hand() -> None:
    curves = np.array([[0.0, 0.85, 0.7, 1.0], [0.0, 0.1, 0.2, 0.3]])
    np.testing.assert_array_equal(_first_reaching(curves, [0, 2, 4, 8], 0.8), [2.0, np.nan])


def test_small_effects_are_marked_not_averaged_away() -> None:
    assert _is_small(np.array([1.0, 0.05, -1.0, 0.0])).tolist() == [False, True, False, True]


def test_bootstrap_of_a_ratio_of_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    effect = np.array([1.0, 2.0, 3.0])
    exact = _bootstrap(0.5 * effect[None, :, None], effect, 200, generator)
    assert exact is not None
    np.testing.assert_allclose(exact, 0.5)  # every resample has the same ratio
    spread = _bootstrap(np.array([[[0.0], [2.0], [3.0]]]), effect, 200, generator)
    assert spread is not None
    assert spread.shape == (1, 1, 200)
    assert spread.min() < 5 / 6 < spread.max()
    assert _bootstrap(effect[None, :, None], np.array([1.0, -2.0, 3.0]), 200, generator) is None


def test_area_intervals_and_leads_are_paired() -> None:
    """Two methods whose curves differ by the same amount in every prompt: wide areas, an exact lead."""
    rng = np.random.default_rng(0)
    effect = np.ones(8)
    base = np.cumsum(rng.random((8, 3)), axis=1)
    gain = np.stack([base + 0.25, base])
    ratios = _bootstrap(gain, effect, 500, torch.Generator().manual_seed(0))
    assert ratios is not None
    found = {name: value[1] for name, value in _intervals("faithfulness", ratios, [0, 1, 2]).items()}
    assert found["faithfulness_interval"].shape == (2, 3, 2)
    area = found["auc_faithfulness_interval"]
    assert (area[:, 1] - area[:, 0] > 0.1).all()
    np.testing.assert_allclose(found["auc_faithfulness_lead_interval"], [[0, 0], [0.25, 0.25]], atol=1e-12)
