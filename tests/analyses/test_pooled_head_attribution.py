"""One map for several prompts: against single maps, planted heads, and everything that is refused in time."""

from typing import Any

import numpy as np
import pytest

from mmlens.analyses import (
    choose_heads,
    faithfulness,
    head_attribution,
    map_similarity,
    pooled_head_attribution,
    recovery,
)
from mmlens.analyses.visual_head_masking import head_table
from mmlens.datasets import scenes
from mmlens.engine import MaskedRuns
from mmlens.errors import AnswerError, ConfigError, DesignError, ShapeError
from mmlens.model import HookedVLM
from mmlens.pretrained import path
from mmlens.recipes.planted_truth import SEED, TRUTH
from mmlens.result import PlantedTruth, PooledAttributionResult
from mmlens.sweeps import sweep
from tests.analyses.build import PLANTED, helped_prompts, planted_model
from tests.engine.build import prompt, tiny_model

QUICK: dict[str, Any] = {"n_heldout": 16, "self_check": False, "progress": False}


@pytest.fixture(scope="module")
def model() -> Any:
    return planted_model()


@pytest.fixture(scope="module")
def prompts(model: Any) -> list[Any]:
    return helped_prompts(model, 3)


@pytest.fixture(scope="module")
def result(model: Any, prompts: list[Any]) -> PooledAttributionResult:
    return pooled_head_attribution(model, prompts, baseline="knockout", n_masks=24, seed=3, **QUICK)


@pytest.fixture(scope="module")
def trained() -> HookedVLM:
    return HookedVLM.from_pretrained("scenes")


def r(first: Any, second: Any) -> float:
    return float(np.corrcoef(np.ravel(first), np.ravel(second))[0, 1])


def test_agrees_with_the_mean_of_single_maps_at_half_of_the_masks(trained: HookedVLM) -> None:
    given = scenes.prompts("heldout", 3, family="main", seed=0)
    single = head_attribution(trained, given, n_masks=192, n_heldout=3, self_check=False, progress=False)
    pooled = pooled_head_attribution(trained, given, n_masks=96, seed=1, **QUICK)  # a block of each prompt
    mean = single.theta.mean("sample")
    assert r(pooled.theta, mean) > 0.995
    assert 2 * int(pooled.data["n_masks"].sum()) == int(single.data["n_masks"].sum())
    low, high = (pooled.interval.sel(bound=name) for name in ("lower", "upper"))
    assert float(((low <= mean) & (mean <= high)).mean()) > 0.9
    fewer = pooled_head_attribution(
        trained, given, n_masks=64, seed=1, **QUICK
    )  # dealt: what differs is noise
    assert 0.8 < r(fewer.theta, mean) < r(pooled.theta, mean)


def test_prompts_that_use_other_heads_are_told(trained: HookedVLM) -> None:
    alike = scenes.prompts("heldout", 4, family="main", seed=0)
    other = scenes.prompts("heldout", 1, family="count", seed=3)
    pooled = pooled_head_attribution(trained, [*alike, *other], n_masks=96, **QUICK)
    r2, pearson = pooled.r2.values, pooled.heldout_pearson.values
    assert pearson[4] < 0.4 < 0.5 < pearson[:4].min() and r2[4] < 0.1 < r2[:4].mean()
    assert pooled.per_prompt()["sample"].tolist()[0] == "4"


@pytest.fixture(scope="module")
def truth() -> PlantedTruth:
    return PlantedTruth.load(path("planted-spread") / TRUTH).first(8)


@pytest.fixture(scope="module")
def spread() -> HookedVLM:
    return HookedVLM.from_pretrained("planted-spread")


@pytest.fixture(scope="module")
def pooled(spread: HookedVLM) -> PooledAttributionResult:
    given = scenes.prompts("heldout", 8, family="main", seed=SEED)
    return pooled_head_attribution(spread, given, max_masks=64, **QUICK)


def test_finds_the_heads_in_use_with_few_masks(truth: PlantedTruth, pooled: PooledAttributionResult) -> None:
    judged = recovery(pooled, truth, family="main", index="banzhaf")
    assert judged.data["method"].values.tolist() == ["pooled head attribution"]
    row = judged.data.isel({"method": 0})
    assert float(row["auroc"]) == 1.0 and float(row["correlation"]) > 0.95
    assert int(row["comparable"]) == 1 and int(row["n_samples"]) == 1
    assert int(pooled.data["n_masks"].max()) <= 64 and float(pooled.data["reliability"]) > 0.9


def test_serves_wherever_heads_are_ranked(spread: HookedVLM, pooled: PooledAttributionResult) -> None:
    chosen = choose_heads(pooled, k=2)
    assert set(chosen.heads) == {(int(a), int(b)) for a, b in pooled.top(2)[["layer", "head"]].values}
    assert len(chosen.chosen_on) == 8 and len(chosen.draws) == 0
    name, table = head_table(pooled, spread)
    np.testing.assert_array_equal(table.numpy(), pooled.theta)
    assert name == "pooled head attribution"
    options: dict[str, Any] = {"n_random": 2, "n_boot": 50, "sizes": [4], "progress": False}
    fresh = scenes.prompts("attribution", 2, family="main", seed=5)
    curves = faithfulness(spread, fresh, {"pooled": pooled}, **options)
    assert float(curves.data["faithfulness"].sel(size=4).mean()) > 0.9
    fitted = scenes.prompts("heldout", 1, family="main", seed=SEED)
    with pytest.raises(DesignError, match="1 of these 1 prompts were used"):
        faithfulness(spread, fitted, {"pooled": pooled}, **options)
    with pytest.raises(ShapeError, match=r"expected \[sample, layer, head\]"):
        map_similarity({"pooled": pooled})


def test_serves_as_a_prior_for_single_prompts(spread: HookedVLM, pooled: PooledAttributionResult) -> None:
    given = scenes.prompts("attribution", 1, family="main", seed=5)
    options: dict[str, Any] = {"n_masks": 24, "design": "antithetic", "seed": 1, **QUICK, "n_heldout": 48}
    helped = head_attribution(spread, given, estimator="prior_ridge", prior=pooled, **options)
    alone = head_attribution(spread, given, estimator="ridge", **options)
    assert helped.info.settings["prior"] == "pooled result, seed 0, 8 prompts"
    assert float(helped.r2[0]) > float(alone.r2[0])


def test_equals_the_mean_of_single_fits_on_whole_blocks(
    model: Any, prompts: list[Any], result: PooledAttributionResult
) -> None:
    single = head_attribution(model, prompts, baseline="knockout", n_masks=48, **QUICK)
    np.testing.assert_allclose(result.theta, single.theta.mean("sample"), atol=2e-6)  # two heads: no noise
    np.testing.assert_allclose(result.data["clean"], single.data["clean"], atol=1e-5)
    np.testing.assert_allclose(result.data["ablated"], single.data["ablated"], atol=1e-5)
    assert {tuple(place) for place in np.argwhere(np.abs(result.theta.values) > 1e-6)} == set(PLANTED)


def test_the_result_says_what_it_is(result: PooledAttributionResult, prompts: list[Any]) -> None:
    assert result.data.attrs == {
        "metric": "logit",
        "unit": "logit",
        "baseline": "knockout",
        "estimator": "ols",
        "design": "hadamard, keep 0.5, dealt out",
    }
    assert result.n == 3 and result.theta.dims == ("layer", "head")
    assert result.data["answer"].values.tolist() == [one.answer for one in prompts]
    settings = result.info.settings
    assert settings["n_masks"] == 24 and settings["n_runs"] == 3 * (24 + 2 + 16)
    assert result.info.seed == 3 and result.info.attn_implementation == "prefix"
    assert result.masks_per_second == pytest.approx(3 * (24 + 2 + 16) / result.info.seconds)
    measured, predicted = result.data["heldout_measured"][1], result.data["heldout_predicted"][1]
    assert float(result.heldout_pearson[1]) == pytest.approx(r(measured, predicted))
    slope = float(np.polyfit(predicted, measured, 1)[0])
    assert float(result.data["slope"][1]) == pytest.approx(slope)


def test_a_seed_repeats_it_bit_by_bit_whatever_the_engine(model: Any, prompts: list[Any]) -> None:
    options: dict[str, Any] = {"n_masks": 12, "estimator": "ridge", **QUICK}
    first, again = (pooled_head_attribution(model, prompts, **options) for _ in range(2))
    assert first.data.equals(again.data)
    plain = pooled_head_attribution(model, prompts, engine="plain", batch_size=5, **options)
    np.testing.assert_allclose(plain.theta, first.theta, atol=1e-5)
    other = pooled_head_attribution(model, prompts, **{**options, "seed": 1})
    assert not np.allclose(other.theta, first.theta)


def test_all_prompts_grow_together(model: Any, prompts: list[Any]) -> None:
    def noisy(logits: Any, inputs: Any) -> Any:
        return logits[:, -1].double().sum(-1) * 1e5 % 1.0  # digits that follow no head

    found = pooled_head_attribution(tiny_model(), prompts, metric=noisy, max_masks=90, **QUICK)
    masks = found.data["n_masks"].values
    assert masks.max() <= 90 and masks.sum() == 264 and np.ptp(masks) <= 2  # 48, and three blocks each
    assert float(found.data["reliability"]) < 0.95
    calm = pooled_head_attribution(model, prompts[:1] * 3, **QUICK)
    assert calm.data["n_masks"].values.tolist() == [16, 16, 16]  # two blocks of 24 in all
    assert float(calm.data["reliability"]) >= 0.95


def test_fresh_masks_are_never_fitted(
    model: Any, prompts: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    original = MaskedRuns.__call__

    def watched(self: Any, masks: Any, **options: Any) -> Any:
        seen.append(masks)
        return original(self, masks, **options)

    monkeypatch.setattr(MaskedRuns, "__call__", watched)
    found = pooled_head_attribution(model, prompts, n_masks=8, estimator="ridge", **QUICK)
    ends, fits, fresh = seen[:3], seen[3:6], seen[6:]
    assert [len(one) for one in ends] == [2] * 3 and [len(one) for one in fits] == [8] * 3
    assert [len(one) for one in fresh] == [16] * 3
    rows = [{tuple(mask.flatten().tolist()) for group in part for mask in group} for part in (fits, fresh)]
    assert not rows[0] & rows[1]
    assert found.info.settings["n_runs"] == sum(map(len, seen))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n_masks": 3}, "n_masks=3: give 'auto' or a whole number of at least 4"),
    ({"n_masks": 4, "estimator": "ols"}, "3 prompts together: n_masks=12 .* 6 independent runs for 12 heads"),
    ({"n_masks": 5, "estimator": "ols"}, "15 masks .iid. do not determine 12 heads"),
    ({"n_masks": 5, "design": "antithetic"}, "n_masks=5 per prompt: .* comes in complementary pairs"),
    ({"n_masks": 10, "design": "hadamard"}, "3 prompts together: .* multiples of 24 masks, not 30"),
    ({"max_masks": 12}, "3 prompts together: max_masks=36 lies below the first round for 12 heads, 48"),
    ({"max_masks": 2}, "max_masks=2: every prompt needs at least 4"),
    ({"n_heldout": 2}, "at least 3 fresh masks"),
    ({"estimator": "prior_ridge", "n_masks": 8}, "shrinks towards a prior"),
    ({"prior": "gates", "estimator": "ols"}, "uses no prior"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
@pytest.mark.usefixtures("unchecked")
def test_refused_before_anything_runs(
    model: Any,
    prompts: list[Any],
    options: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(self: Any, *given: Any, **kept: Any) -> Any:
        raise AssertionError("a mask was run")

    monkeypatch.setattr(MaskedRuns, "__call__", run)
    with pytest.raises(DesignError, match=message):
        pooled_head_attribution(model, prompts, **{**QUICK, **options})


def test_what_must_fail_names_the_sample_before_masks_are_fitted(model: Any, prompts: list[Any]) -> None:
    with pytest.raises(DesignError, match="one prompt has nothing to be pooled with"):
        pooled_head_attribution(model, prompts[:1], **QUICK)
    unanswered = prompt(0, "what is this ?", answer=None, foil=None)
    with pytest.raises(AnswerError, match=r"samples \[3\] have no answer"):
        pooled_head_attribution(model, [*prompts, unanswered], **QUICK)
    with pytest.raises(DesignError, match=r"sample 0.*ablating heads does not move it"):
        pooled_head_attribution(model, prompts, metric=lambda logits, inputs: logits[:, -1, 0] * 0, **QUICK)


def test_a_sweep_of_it_is_refused_at_once(model: Any, prompts: list[Any], tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="gives one answer for all prompts together"):
        sweep(model, prompts, "pooled_head_attribution", tmp_path / "sweep", progress=False)
    assert not (tmp_path / "sweep").exists()
