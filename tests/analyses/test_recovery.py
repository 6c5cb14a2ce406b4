"""Recovery of planted truths: perfect, inverted, constant and noisy maps with known merits; every error."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from mmlens.analyses import recovery
from mmlens.analyses.recovery import _merits
from mmlens.errors import ConfigError, DesignError, NonFiniteError, ResultError, ShapeError
from mmlens.result import AttributionResult, HeadScoreResult, PlantedTruth, RecoveryResult, Result
from tests.result.examples import attribution_data, planted_truth, run_info

PLACES = [(3, 1), (2, 2)]
"""The two of 6 × 4 heads that ``colour`` uses, equally."""


@pytest.fixture(scope="module")
def truth() -> PlantedTruth:
    return planted_truth()


@pytest.fixture(scope="module")
def exact(truth: PlantedTruth) -> np.ndarray:
    return truth.exact("colour").values


def small(**changes: Any) -> PlantedTruth:
    """A model of 1 × 2 heads: the first a carrier worth 2, the second a decoy worth 0."""
    shares = {
        name: np.array([0.5])
        for name in ("full_accuracy", "planted_only_accuracy", "unplanted_only_accuracy", "chance")
    }
    given: dict[str, Any] = {
        "value": np.array([[[[0.0, 2.0, 0.0, 2.0]] * 3]]),
        "accuracy": np.full((1, 1, 4), 0.5),
        "heads": [(0, 0, "carrier"), (0, 1, "decoy")],
        "baselines": ["mean_image_tokens"],
        "families": ["colour"],
        "n_layers": 1,
        "n_heads": 2,
        "info": run_info("planted"),
    }
    return PlantedTruth.from_arrays(**shares, **(given | changes))


def judged(scores: Any, truth: PlantedTruth, name: str = "scores", **options: Any) -> dict[str, float]:
    """Figures of merit of one method about colour."""
    result = recovery(scores, truth, family="colour", **options)
    data = result.data.sel({"method": name})
    return {str(key): float(value) for key, value in data.data_vars.items() if value.ndim == 0}


def test_the_exact_values_recover_themselves(truth: PlantedTruth, exact: np.ndarray) -> None:
    found = judged(truth.exact("colour"), truth)
    for name in ("auroc", "average_precision", "recovered_at_k", "exact_recovery", "comparable"):
        assert found[name] == 1.0
    assert found["correlation"] == pytest.approx(1) == pytest.approx(found["rank_correlation"])
    assert found["error"] == 0.0
    assert judged(2 * exact, truth)["correlation"] == pytest.approx(1.0)


def test_an_inverted_map_is_as_wrong_as_can_be(truth: PlantedTruth, exact: np.ndarray) -> None:
    found = judged(-exact, truth)
    assert found["auroc"] == found["recovered_at_k"] == found["exact_recovery"] == 0.0
    assert found["average_precision"] == pytest.approx((2 / 24 + 2 / 24) / 2)  # both come last, tied
    assert found["correlation"] == pytest.approx(-1) == pytest.approx(found["rank_correlation"])


def test_a_constant_map_is_a_guess(truth: PlantedTruth) -> None:
    found = judged(np.full((6, 4), 0.1), truth)
    assert found["auroc"] == 0.5
    assert found["average_precision"] == pytest.approx(2 / 24) == pytest.approx(found["recovered_at_k"])
    assert found["exact_recovery"] == 0
    assert np.isnan(found["correlation"]) and np.isnan(found["rank_correlation"])


def test_noise_is_a_guess_on_average(truth: PlantedTruth) -> None:
    maps = np.random.default_rng(0).normal(size=(400, 6, 4))
    result = recovery({f"noise {i}": one for i, one in enumerate(maps)}, truth, family="colour")
    means = result.data.mean("method")
    assert float(means["auroc"]) == pytest.approx(0.5, abs=0.04)
    assert float(means["recovered_at_k"]) == pytest.approx(2 / 24, abs=0.04)
    assert float(means["correlation"]) == pytest.approx(0.0, abs=0.05)


def test_merits_by_hand(truth: PlantedTruth) -> None:
    """One head in use comes first, the other is third, behind one that is not in use."""
    scores = np.zeros((6, 4))
    scores[3, 1], scores[0, 0], scores[2, 2] = 3.0, 2.0, 1.0
    found = judged(scores, truth)
    assert found["auroc"] == pytest.approx((22 + 21) / 44)
    assert found["average_precision"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert found["recovered_at_k"] == 0.5 and found["exact_recovery"] == 0


def test_ties_count_half_and_fill_the_top_in_proportion(truth: PlantedTruth) -> None:
    """One head in use comes first, the other ties with three that are not: one of four fits in the top two."""
    scores = np.zeros((6, 4))
    scores[3, 1] = 2.0
    scores[2, 2] = scores[0, 0] = scores[0, 1] = scores[5, 3] = 1.0
    found = judged(scores, truth)
    assert found["auroc"] == pytest.approx((22 + 19 + 3 / 2) / 44)
    assert found["average_precision"] == pytest.approx((1 + 2 / 5) / 2)
    assert found["recovered_at_k"] == pytest.approx((1 + 1 / 4) / 2)


def test_the_error_is_in_the_metrics_unit(truth: PlantedTruth, exact: np.ndarray) -> None:
    shifted = xr.DataArray(exact + 0.3, dims=("layer", "head"), attrs={"unit": "logit"})
    assert judged(shifted, truth)["error"] == pytest.approx(0.3)
    one_off = shifted - 0.3
    one_off[0, 0] += 2.0
    assert judged(one_off.assign_attrs(unit="logit"), truth)["error"] == pytest.approx(2 / np.sqrt(24))


@given(
    arrays(np.float64, (3, 9), elements=st.integers(-3, 3)),
    st.sets(st.integers(0, 8), min_size=1, max_size=8),
)
def test_merits_equal_sklearn_and_scipy(scores: np.ndarray, chosen: set[int]) -> None:
    used = np.isin(np.arange(9), list(chosen))
    exact = np.where(used, np.arange(9) + 1.0, 0.0)
    found = _merits(scores, exact, used)
    for i, one in enumerate(scores):
        assert found["auroc"][i] == pytest.approx(roc_auc_score(used, one))
        assert found["average_precision"][i] == pytest.approx(average_precision_score(used, one))
        assert found["error"][i] == pytest.approx(np.sqrt(np.mean((one - exact) ** 2)))
        if np.ptp(one) > 0:
            assert found["correlation"][i] == pytest.approx(stats.pearsonr(one, exact)[0])
            assert found["rank_correlation"][i] == pytest.approx(stats.spearmanr(one, exact)[0])
    assert ((found["recovered_at_k"] == 1) == (found["exact_recovery"] == 1)).all()


# --- several samples


def test_the_mean_over_samples_is_judged_with_an_interval(truth: PlantedTruth, exact: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    maps = exact + rng.normal(0, 1.5, (12, 6, 4))
    result = recovery({"noisy": maps, "mean": maps.mean(axis=0)}, truth, family="colour", n_boot=200)
    noisy, mean = result.data.sel({"method": "noisy"}), result.data.sel({"method": "mean"})
    for name in ("auroc", "average_precision", "recovered_at_k", "correlation", "rank_correlation"):
        assert float(noisy[name]) == pytest.approx(float(mean[name]))
        low, high = noisy[f"{name}_interval"].values
        assert -1 <= low < high <= 1
        assert np.isnan(mean[f"{name}_interval"]).all()
    assert result.data["n_samples"].values.tolist() == [12, 1]


def test_samples_that_agree_leave_no_doubt(truth: PlantedTruth) -> None:
    result = recovery(
        np.repeat(truth.exact("colour").values[None], 4, axis=0), truth, family="colour", n_boot=50
    )
    np.testing.assert_allclose(result.data["auroc_interval"], 1.0)
    np.testing.assert_allclose(result.data["correlation_interval"], 1.0)


def test_constant_samples_stay_tied_in_every_draw(truth: PlantedTruth) -> None:
    maps = np.random.default_rng(0).normal(size=(9, 1, 1)) * np.ones((9, 6, 4))
    result = recovery(maps, truth, family="colour", n_boot=100)
    assert result.data["auroc_interval"].values.tolist() == [[0.5, 0.5]]
    assert "correlation_interval" not in result.data  # undefined in every draw


def test_intervals_repeat_with_the_seed(truth: PlantedTruth) -> None:
    maps = np.random.default_rng(0).normal(size=(6, 6, 4))
    options: dict[str, Any] = {"family": "colour", "n_boot": 60}
    first, again = recovery(maps, truth, **options), recovery(maps, truth, **options)
    assert first.data.identical(again.data)
    assert not first.data.identical(recovery(maps, truth, seed=1, **options).data)
    assert first.info.seed == 0


def test_one_sample_is_one_map(truth: PlantedTruth, exact: np.ndarray) -> None:
    result = recovery(exact[None], truth, family="colour")
    assert "auroc_interval" not in result.data and result.data["n_samples"].values.tolist() == [1]


# --- what scores may be


def attribution(**attrs: str) -> AttributionResult:
    data = attribution_data(4).assign_attrs({"metric": "logit"} | attrs)
    return AttributionResult(data=data, info=run_info("planted"))


def head_scores(values: np.ndarray, **attrs: str) -> HeadScoreResult:
    data = xr.Dataset(
        {"score": (("sample", "layer", "head"), values)},
        attrs={"method": "single-head ablation", "unit": "logit", "sign": "positive = hurts"} | attrs,
    )
    return HeadScoreResult(data=data, info=run_info("scenes"))


def test_every_form_of_the_same_scores_is_judged_alike(truth: PlantedTruth, exact: np.ndarray) -> None:
    array = xr.DataArray(exact, dims=("layer", "head"))
    forms = {
        "array": exact,
        "float32": exact.astype(np.float32).astype(np.float64).astype(np.float32),
        "tensor": torch.from_numpy(exact),
        "with gradient": torch.from_numpy(exact).requires_grad_(),
        "named": array,
        "transposed": array.T,
        "result": head_scores(exact[None]),
    }
    result = recovery(forms, truth, family="colour")
    assert result.methods == list(forms)
    assert (result.data["auroc"] == 1).all()
    np.testing.assert_allclose(result.data["correlation"], 1.0)
    assert result.data["comparable"].values.tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert result.error["method"].values.tolist() == ["result"]
    assert float(result.error[0]) == pytest.approx(0.0)


def test_results_alone_keep_their_names(truth: PlantedTruth, exact: np.ndarray) -> None:
    assert recovery(attribution(), truth, family="colour").methods == ["head attribution"]
    assert recovery(head_scores(exact[None]), truth, family="colour").methods == ["single-head ablation"]


def test_results_are_comparable_in_unit_and_metric(truth: PlantedTruth, exact: np.ndarray) -> None:
    scores = {
        "same": attribution(),
        "other metric": attribution(metric="logit_diff"),
        "other unit": attribution(unit="nat"),
        "weight": head_scores(exact[None], unit="1"),
    }
    result = recovery(scores, truth, family="colour", n_boot=20)
    assert result.data["comparable"].values.tolist() == [1, 0, 0, 0]
    assert not np.isnan(result.data["error_interval"].values[0]).any()
    assert np.isnan(result.data["error_interval"].values[1:]).all()


def test_scores_of_other_weights_are_on_record(truth: PlantedTruth, exact: np.ndarray) -> None:
    scores = {"mine": attribution(), "control": head_scores(exact[None]), "array": exact}
    settings = recovery(scores, truth, family="colour", n_boot=20).info.settings
    assert settings["scores_of_other_weights"] == ["control"]


def test_the_result_says_what_it_was_compared_with(truth: PlantedTruth, tmp_path: Any) -> None:
    result = recovery(truth.exact("count"), truth, family="count", baseline="knockout", index="banzhaf")
    assert result.data.attrs == {
        "family": "count",
        "baseline": "knockout",
        "index": "banzhaf",
        "metric": "logit",
        "unit": "logit",
    }
    np.testing.assert_allclose(
        result.data["exact_value"], truth.exact("count", baseline="knockout", index="banzhaf")
    )
    assert np.argwhere(result.data["in_use"].values).tolist() == sorted(map(list, PLACES))
    assert result.info.model_id == "planted"
    back = Result.load(result.save(tmp_path / "r.mmlens"))
    assert isinstance(back, RecoveryResult) and back.data.identical(result.data)


def test_constant_exact_values_have_no_correlation(truth: PlantedTruth, exact: np.ndarray) -> None:
    """Either carrier is enough for count: no head's removal alone changes anything."""
    result = recovery(exact, truth, family="count", index="removal")
    assert np.isnan(result.data["correlation"]).all() and (result.data["auroc"] == 1).all()


# --- what must fail


def test_scores_of_another_shape(truth: PlantedTruth, exact: np.ndarray) -> None:
    message = r"'flipped' have shape \[4, 6\]; expected \[layer, head\] = \[6, 4\]"
    with pytest.raises(ShapeError, match=message):
        recovery({"flipped": exact.T}, truth, family="colour")
    for wrong in (exact.ravel(), exact[None, None], np.zeros((0, 6, 4))):
        with pytest.raises(ShapeError, match="one such map per sample"):
            recovery(wrong, truth, family="colour")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_have_no_rank(truth: PlantedTruth, exact: np.ndarray, bad: float) -> None:
    broken = exact.copy()
    broken[0, 0] = bad
    with pytest.raises(NonFiniteError, match="'broken' hold NaN or infinity"):
        recovery({"fine": exact, "broken": broken}, truth, family="colour")


def test_unknown_names_are_listed(truth: PlantedTruth, exact: np.ndarray) -> None:
    with pytest.raises(ResultError, match=r"no family 'size' .* object, colour, count"):
        recovery(exact, truth, family="size")
    with pytest.raises(ResultError, match="no baseline 'zero'"):
        recovery(exact, truth, family="colour", baseline="zero")


@pytest.mark.usefixtures("unchecked")
def test_unknown_indices_are_listed(truth: PlantedTruth, exact: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"'owen' is unknown; choose shapley, banzhaf, removal, addition"):
        recovery(exact, truth, family="colour", index="owen")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="choose shapley, banzhaf"):
        truth.interactions("colour", index="removal")  # type: ignore[arg-type]


def test_no_draw_and_no_scores(truth: PlantedTruth, exact: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="n_boot=0"):
        recovery(np.stack([exact, exact]), truth, family="colour", n_boot=0)
    with pytest.raises(DesignError, match="no scores were given"):
        recovery({}, truth, family="colour")


def test_families_that_use_no_head_or_every_head() -> None:
    scores = np.array([[1.0, 0.0]])
    assert judged(scores, small())["auroc"] == 1.0
    nothing = small(value=np.zeros((1, 1, 3, 4)))
    with pytest.raises(DesignError, match="colour uses no head"):
        recovery(scores, nothing, family="colour")
    everything = small(value=np.array([[[[0.0, 1.0, 1.0, 2.0]] * 3]]))
    with pytest.raises(DesignError, match="colour uses every head"):
        recovery(scores, everything, family="colour")
